// Package dial calls the HTTP servers of Millrace's programs, with TLS and a token if they
// need them. Workers call each other with it, and commands call workers.
package dial

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"os"

	"golang.org/x/sync/errgroup"

	"millrace/pipeline/reload"
)

// Files are the files of a caller.
type Files struct {
	Token       string // with the token; "" means none
	TokenText   string // the token itself, without a file
	CA          string // PEM, authorities that sign the servers' certificates; "" means those of the system
	Certificate string // PEM, of the caller; "" means none
	Key         string // PEM, of Certificate
	TLS         bool   // the servers use TLS; CA and Certificate mean that, too
}

// A Caller calls servers. Several goroutines can use it.
type Caller struct {
	scheme string
	tls    *tls.Config                     // nil: no TLS
	text   string                          // the token, if it is not in a file
	token  *reload.Files[string]           // nil: none
	pair   *reload.Files[*tls.Certificate] // nil: none
}

// Open reads the files of a caller.
func Open(log *slog.Logger, f Files) (*Caller, error) {
	c := &Caller{scheme: "http://", text: f.TokenText}
	if f.TLS || f.CA != "" || f.Certificate != "" {
		c.scheme = "https://"
		if err := c.secure(log, f); err != nil {
			return nil, err
		}
	}
	if f.Token == "" {
		return c, nil
	}
	var err error
	c.token, err = reload.Open(log, readToken, f.Token)
	if err != nil {
		return nil, fmt.Errorf("--token-file: %w", err)
	}
	return c, nil
}

// secure sets up TLS.
func (c *Caller) secure(log *slog.Logger, f Files) error {
	c.tls = &tls.Config{MinVersion: tls.VersionTLS12}
	if f.CA != "" {
		pem, err := os.ReadFile(f.CA)
		if err != nil {
			return fmt.Errorf("--server-ca: %w", err)
		}
		c.tls.RootCAs = x509.NewCertPool()
		if !c.tls.RootCAs.AppendCertsFromPEM(pem) {
			return fmt.Errorf("--server-ca: %s has no certificate in PEM", f.CA)
		}
	}
	if (f.Certificate == "") != (f.Key == "") {
		return errors.New("a client certificate needs both --client-cert and --client-key")
	}
	if f.Certificate == "" {
		return nil
	}
	var err error
	c.pair, err = reload.Open(log, func(pem [][]byte) (*tls.Certificate, error) {
		p, err := tls.X509KeyPair(pem[0], pem[1])
		return &p, err
	}, f.Certificate, f.Key)
	if err != nil {
		return fmt.Errorf("--client-cert, --client-key: %w", err)
	}
	c.tls.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return c.pair.Get(), nil }
	return nil
}

// Run reads the token and the certificate again when they change, until the context ends.
// Authorities are read once.
func (c *Caller) Run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	if c.token != nil {
		g.Go(func() error { return c.token.Run(ctx) })
	}
	if c.pair != nil {
		g.Go(func() error { return c.pair.Run(ctx) })
	}
	return g.Wait()
}

// readToken reads the file of a token: one line.
func readToken(contents [][]byte) (string, error) {
	token := string(bytes.TrimSpace(contents[0]))
	if token == "" || bytes.ContainsAny([]byte(token), " \t\r\n") {
		return "", errors.New("it must have a token in one line, without spaces")
	}
	return token, nil
}

// URL returns the URL of a path of the server at an address, host:port.
func (c *Caller) URL(address, path string) string { return c.scheme + address + path }

// Named reports whether the servers can know the caller: it has a token or a certificate.
func (c *Caller) Named() bool { return c.token != nil || c.text != "" || c.pair != nil }

// Scheme returns http or https.
func (c *Caller) Scheme() string { return c.scheme[:len(c.scheme)-len("://")] }

// tokenNow returns the token, "" if there is none.
func (c *Caller) tokenNow() string {
	if c.token != nil {
		return c.token.Get()
	}
	return c.text
}

// Transport returns a transport that adds what the servers need to know the caller. It
// changes base, which no one else may use.
func (c *Caller) Transport(base *http.Transport) *Transport {
	base.Proxy = nil
	if c.tls != nil {
		base.TLSClientConfig, base.ForceAttemptHTTP2 = c.tls.Clone(), true
	}
	return &Transport{base: base, token: c.tokenNow}
}

// A Transport adds the token to each request.
type Transport struct {
	base  *http.Transport
	token func() string // returns "" if there is none
}

// RoundTrip implements [http.RoundTripper].
func (t *Transport) RoundTrip(r *http.Request) (*http.Response, error) {
	if token := t.token(); token != "" {
		r = r.Clone(r.Context())
		r.Header.Set("Authorization", "Bearer "+token)
	}
	return t.base.RoundTrip(r)
}

// CloseIdleConnections is for [http.Client].
func (t *Transport) CloseIdleConnections() { t.base.CloseIdleConnections() }
