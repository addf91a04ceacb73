package access_test

import (
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"net/url"
	"slices"
	"strings"
	"testing"

	"millrace/pipeline/access"
)

const secret = "canary-6f1b2c9d8e7a4b50"

func TestCallersAreFoundByTokenAndByCertificate(t *testing.T) {
	sum := sha256.Sum256([]byte("another-" + secret))
	l, err := access.Parse([]byte(`
tokens:
  - {name: dashboards, roles: [read], token: ` + secret + `}
  - {name: shop, roles: [write, read], sha256: ` + hex.EncodeToString(sum[:]) + `}
certificates:
  - {name: ops, roles: [admin], subject: "CN=ops,O=Shop"}
  - {name: workers, roles: [worker], uri: "spiffe://shop/projector"}
  - {name: queries, roles: [read], dns: projector.shop}
`))
	if err != nil {
		t.Fatal(err)
	}
	for token, want := range map[string]string{
		secret:              "dashboards",
		"another-" + secret: "shop",
		secret[1:]:          "",
		secret + "x":        "",
		"":                  "",
	} {
		if c, ok := l.ByToken(token); c.Name != want || ok != (want != "") {
			t.Errorf("the token %q is of %q (%v), want %q", token, c.Name, ok, want)
		}
	}
	uri, err := url.Parse("spiffe://shop/projector")
	if err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		cert  x509.Certificate
		roles []access.Role
	}{
		{x509.Certificate{Subject: pkix.Name{CommonName: "ops", Organization: []string{"Shop"}}}, []access.Role{access.Admin}},
		{x509.Certificate{Subject: pkix.Name{CommonName: "ops"}}, nil},
		{x509.Certificate{DNSNames: []string{"a.shop", "projector.shop"}, URIs: []*url.URL{uri}}, []access.Role{access.Worker, access.Read}},
		{x509.Certificate{DNSNames: []string{"projector.shop.example"}}, nil},
		{x509.Certificate{}, nil},
	} {
		c, ok := l.ByCertificate(&test.cert)
		if ok != (test.roles != nil) || !slices.Equal(c.Roles, test.roles) {
			t.Errorf("%s has the roles %v (%v), want %v", test.cert.Subject, c.Roles, ok, test.roles)
		}
	}
}

func TestAdminIncludesAllRolesAndWorkerIncludesRead(t *testing.T) {
	for _, have := range access.Roles() {
		for _, needed := range access.Roles() {
			c := access.Caller{Roles: []access.Role{have}}
			if want := have == needed || have == access.Admin || have == access.Worker && needed == access.Read; c.Has(needed) != want {
				t.Errorf("a caller with %s has %s: %v, want %v", have, needed, c.Has(needed), want)
			}
		}
	}
	if !(access.Caller{}).Has(access.Public) {
		t.Error("a caller without a role cannot call a public route")
	}
}

func TestFaultsOfTheFileNameTheEntryAndNoToken(t *testing.T) {
	for text, want := range map[string]string{
		"":                     "it names no caller: add an entry to tokens or certificates",
		"tokens: []":           "it names no caller: add an entry to tokens or certificates",
		secret:                 "docs/security.md shows the form",
		"tokens:\n- " + secret: "docs/security.md shows the form",
		"tokens:\n- {name: a, roles: [read], " + secret + ": x}":                                                     "line 2 is not a part of an access list",
		"tokens: {" + secret + "":                                                                                    "docs/security.md shows the form",
		"tokens: [{roles: [read], token: " + secret + "}]":                                                           "tokens, entry 1: it has no name, which the log needs",
		"tokens: [{name: a, token: " + secret + "}]":                                                                 "tokens, entry 1: a has no roles",
		"tokens: [{name: a, roles: [reader], token: " + secret + "}]":                                                `tokens, entry 1: a: there is no role "reader": the roles are read, write, admin, worker`,
		"tokens: [{name: a, roles: [read]}]":                                                                         "tokens, entry 1: a needs one of token and sha256",
		"tokens: [{name: a, roles: [read], token: " + secret + ", sha256: aa}]":                                      "tokens, entry 1: a needs one of token and sha256",
		"tokens: [{name: a, roles: [read], token: canary}]":                                                          "tokens, entry 1: the token of a has 6 bytes; it must have 20 at least",
		"tokens: [{name: a, roles: [read], sha256: " + secret + "}]":                                                 "tokens, entry 1: sha256 of a is not the 64 hexadecimal digits of a SHA-256 sum",
		"tokens: [{name: a, roles: [read], token: " + secret + "}, {name: a, roles: [read], token: x}]":              "tokens, entry 2: the name a is used twice",
		"tokens: [{name: a, roles: [read], token: " + secret + "}, {name: b, roles: [read], token: " + secret + "}]": "tokens, entry 2: b has the token of a",
		"certificates: [{name: a, roles: [read]}]":                                                                   "certificates, entry 1: a needs one of subject, dns and uri",
		"certificates: [{name: a, roles: [read], dns: x, uri: y}]":                                                   "certificates, entry 1: a needs one of subject, dns and uri",
	} {
		l, err := access.Parse([]byte(text))
		if err == nil || l != nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: the error is %v, want one with %q", text, err, want)
			continue
		}
		if strings.Contains(err.Error(), "canary") {
			t.Errorf("the error contains a token: %v", err)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte("tokens: [{name: a, roles: [read], token: " + secret + "}]"))
	f.Add([]byte("certificates: [{name: a, roles: [admin], subject: CN=a}]"))
	f.Fuzz(func(t *testing.T, data []byte) {
		l, err := access.Parse(data)
		if (l == nil) == (err == nil) {
			t.Errorf("the list is %v, the error is %v", l, err)
		}
		if l != nil {
			if c, ok := l.ByToken(""); ok {
				t.Errorf("an empty token is of %q", c.Name)
			}
		}
	})
}
