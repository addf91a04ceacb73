package server

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"

	"millrace/pipeline/reload"
)

// TLSFiles are the files in PEM of a server with TLS.
type TLSFiles struct {
	Certificate string // the server's certificate, followed by those of intermediate authorities
	Key         string
	ClientCA    string // authorities of client certificates; "" means that none are asked for
}

// Enabled reports whether the server has TLS.
func (f TLSFiles) Enabled() bool { return f != TLSFiles{} }

// open reads the files.
func (f TLSFiles) open(log *slog.Logger) (*reload.Files[*tls.Config], error) {
	if f.Certificate == "" || f.Key == "" {
		return nil, errors.New("TLS needs both --tls-cert and --tls-key")
	}
	paths := []string{f.Certificate, f.Key}
	if f.ClientCA != "" {
		paths = append(paths, f.ClientCA)
	}
	return reload.Open(log, tlsConfig, paths...)
}

// tlsConfig returns the configuration for a certificate, its key and, if given, the
// authorities of client certificates.
func tlsConfig(pem [][]byte) (*tls.Config, error) {
	cert, err := tls.X509KeyPair(pem[0], pem[1])
	if err != nil {
		return nil, err
	}
	c := &tls.Config{
		MinVersion:   tls.VersionTLS12,
		Certificates: []tls.Certificate{cert},
		NextProtos:   []string{"h2", "http/1.1"},
	}
	if len(pem) == 3 {
		c.ClientCAs = x509.NewCertPool()
		if !c.ClientCAs.AppendCertsFromPEM(pem[2]) {
			return nil, fmt.Errorf("the file of client authorities has no certificate in PEM")
		}
		c.ClientAuth = tls.VerifyClientCertIfGiven // a token is an alternative
	}
	return c, nil
}

// serving returns the configuration of a listener, which follows the files.
func serving(files *reload.Files[*tls.Config]) *tls.Config {
	return &tls.Config{
		MinVersion:         tls.VersionTLS12,
		NextProtos:         []string{"h2", "http/1.1"},
		GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) { return files.Get(), nil },
	}
}
