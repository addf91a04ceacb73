package access

import (
	"bytes"
	"crypto/sha256"
	"crypto/subtle"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"

	"go.yaml.in/yaml/v4"
)

// MinToken is the length in bytes that a token must have. A random token of this length,
// in letters and digits, cannot be guessed.
const MinToken = 20

// A List has the callers that a program knows. Several goroutines can use it.
type List struct {
	tokens       []tokenOf
	certificates []certificateOf
}

type tokenOf struct {
	sum    [sha256.Size]byte
	caller Caller
}

// certificateOf is a caller with a client certificate. One of the texts is not empty.
type certificateOf struct {
	subject, dns, uri string
	caller            Caller
}

// fileText is the form of the file.
type fileText struct {
	Tokens       []tokenText       `yaml:"tokens"`
	Certificates []certificateText `yaml:"certificates"`
}

type tokenText struct {
	Name   string   `yaml:"name"`
	Roles  []string `yaml:"roles"`
	Token  string   `yaml:"token"`
	SHA256 string   `yaml:"sha256"`
}

type certificateText struct {
	Name    string   `yaml:"name"`
	Roles   []string `yaml:"roles"`
	Subject string   `yaml:"subject"`
	DNS     string   `yaml:"dns"`
	URI     string   `yaml:"uri"`
}

// Parse reads the file of --auth-file. It is YAML:
//
//	tokens:
//	  - {name: dashboards, roles: [read], sha256: 2c26...}  # of the token, in hexadecimal
//	  - {name: shop, roles: [write], token: 2f8e...}        # or the token itself
//	certificates:
//	  - {name: ops, roles: [admin], subject: "CN=ops,O=Shop"} # or dns: NAME, or uri: URI
//
// An error never contains a token.
func Parse(data []byte) (*List, error) {
	var text fileText
	if len(bytes.TrimSpace(data)) > 0 {
		if err := yaml.Load(data, &text, yaml.WithKnownFields()); err != nil {
			return nil, withoutValues(err)
		}
	}
	if len(text.Tokens)+len(text.Certificates) == 0 {
		return nil, errors.New("it names no caller: add an entry to tokens or certificates")
	}
	l := &List{}
	names := map[string]bool{}
	for i, t := range text.Tokens {
		if err := l.addToken(t, names); err != nil {
			return nil, fmt.Errorf("tokens, entry %d: %w", i+1, err)
		}
	}
	for i, c := range text.Certificates {
		if err := l.addCertificate(c, names); err != nil {
			return nil, fmt.Errorf("certificates, entry %d: %w", i+1, err)
		}
	}
	return l, nil
}

// withoutValues returns the error for a text that does not have the form of the file. The
// text of the library's error may contain a part of a token.
func withoutValues(err error) error {
	var all *yaml.LoadErrors
	if errors.As(err, &all) && len(all.Errors) > 0 {
		err = all.Errors[0]
	}
	var one *yaml.LoadError
	if errors.As(err, &one) && one.Mark.Line > 0 {
		return fmt.Errorf("line %d is not a part of an access list; docs/security.md shows the form", one.Mark.Line)
	}
	return errors.New("it is no access list in YAML; docs/security.md shows the form")
}

func (l *List) addToken(t tokenText, names map[string]bool) error {
	c, err := callerOf(t.Name, t.Roles, names)
	if err != nil {
		return err
	}
	if (t.Token == "") == (t.SHA256 == "") {
		return fmt.Errorf("%s needs one of token and sha256", t.Name)
	}
	added := tokenOf{caller: c, sum: sha256.Sum256([]byte(t.Token))}
	if t.Token != "" && len(t.Token) < MinToken {
		return fmt.Errorf("the token of %s has %d bytes; it must have %d at least", t.Name, len(t.Token), MinToken)
	}
	if t.SHA256 != "" {
		sum, err := hex.DecodeString(t.SHA256)
		if err != nil || len(sum) != sha256.Size {
			return fmt.Errorf("sha256 of %s is not the %d hexadecimal digits of a SHA-256 sum", t.Name, 2*sha256.Size)
		}
		added.sum = [sha256.Size]byte(sum)
	}
	for _, other := range l.tokens {
		if other.sum == added.sum {
			return fmt.Errorf("%s has the token of %s", t.Name, other.caller.Name)
		}
	}
	l.tokens = append(l.tokens, added)
	return nil
}

func (l *List) addCertificate(t certificateText, names map[string]bool) error {
	c, err := callerOf(t.Name, t.Roles, names)
	if err != nil {
		return err
	}
	given := 0
	for _, text := range []string{t.Subject, t.DNS, t.URI} {
		if text != "" {
			given++
		}
	}
	if given != 1 {
		return fmt.Errorf("%s needs one of subject, dns and uri", t.Name)
	}
	l.certificates = append(l.certificates, certificateOf{subject: t.Subject, dns: t.DNS, uri: t.URI, caller: c})
	return nil
}

// callerOf returns the caller of an entry. names holds the names of earlier entries.
func callerOf(name string, roles []string, names map[string]bool) (Caller, error) {
	switch {
	case name == "":
		return Caller{}, errors.New("it has no name, which the log needs")
	case names[name]:
		return Caller{}, fmt.Errorf("the name %s is used twice", name)
	case len(roles) == 0:
		return Caller{}, fmt.Errorf("%s has no roles", name)
	}
	names[name] = true
	c := Caller{Name: name}
	for _, text := range roles {
		r, err := ParseRole(text)
		if err != nil {
			return Caller{}, fmt.Errorf("%s: %w", name, err)
		}
		c.Roles = append(c.Roles, r)
	}
	return c, nil
}

// ByToken returns the caller with a token. Its time does not depend on how much of a token
// is right.
func (l *List) ByToken(token string) (c Caller, ok bool) {
	sum := sha256.Sum256([]byte(token))
	for _, t := range l.tokens {
		if subtle.ConstantTimeCompare(t.sum[:], sum[:]) == 1 {
			c, ok = t.caller, true
		}
	}
	return c, ok
}

// ByCertificate returns the caller with a client certificate, which the caller of this
// method has verified. If several entries fit, the caller has the roles of all.
func (l *List) ByCertificate(cert *x509.Certificate) (c Caller, ok bool) {
	for _, e := range l.certificates {
		if !e.fits(cert) {
			continue
		}
		if !ok {
			c.Name = e.caller.Name
		}
		c.Roles = append(c.Roles[:len(c.Roles):len(c.Roles)], e.caller.Roles...)
		ok = true
	}
	return c, ok
}

func (e *certificateOf) fits(cert *x509.Certificate) bool {
	if e.subject != "" {
		return cert.Subject.String() == e.subject
	}
	for _, name := range cert.DNSNames {
		if e.dns != "" && name == e.dns {
			return true
		}
	}
	for _, uri := range cert.URIs {
		if e.uri != "" && uri.String() == e.uri {
			return true
		}
	}
	return false
}
