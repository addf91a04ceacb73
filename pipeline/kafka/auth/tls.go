// Package auth has the settings with which a client proves its identity to brokers and checks
// theirs: TLS, SASL, and secrets that are never printed. Its values are constant; only the
// source of tokens has a lock.
package auth

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
)

// TLS holds the settings for encryption, trusted authorities and client certificates.
// The zero value means no encryption. With only Enabled set, brokers must have a
// certificate that the system trusts.
//
// Files are in PEM form. They are read again for every new connection, so a renewed
// certificate needs no restart.
type TLS struct {
	Enabled bool

	// CAFile or CAPEM holds the trusted authorities, which replace the system's.
	CAFile, CAPEM string

	// CertFile or CertPEM, with KeyFile or KeyPEM, is the client certificate (mutual
	// TLS). One file may hold both. Keys must not be encrypted.
	CertFile, CertPEM string
	KeyFile           string
	KeyPEM            Secret

	// ServerName is the name that brokers' certificates must be for; the dialed host
	// if empty.
	ServerName string

	// InsecureSkipVerify accepts any certificate. Every client created with it logs
	// a warning.
	InsecureSkipVerify bool
}

// Config returns the configuration of a new connection from the current content of the
// files; nil if TLS is not enabled.
func (t TLS) Config() (*tls.Config, error) {
	if !t.Enabled {
		return nil, nil
	}
	cfg := &tls.Config{
		MinVersion:         tls.VersionTLS12,
		ServerName:         t.ServerName,
		InsecureSkipVerify: t.InsecureSkipVerify, // requested by the user, and logged
	}
	ca, from, err := pemOf("ssl.ca.location", t.CAFile, "ssl.ca.pem", t.CAPEM)
	if err != nil {
		return nil, err
	}
	if ca != nil {
		cfg.RootCAs = x509.NewCertPool()
		if !cfg.RootCAs.AppendCertsFromPEM(ca) {
			return nil, fmt.Errorf("%s: holds no certificate in PEM form (%q); convert other forms, such as a Java keystore, with keytool -exportcert -rfc", from, "-----BEGIN CERTIFICATE-----")
		}
	}
	cert, certFrom, err := pemOf("ssl.certificate.location", t.CertFile, "ssl.certificate.pem", t.CertPEM)
	if err != nil {
		return nil, err
	}
	key, keyFrom, err := pemOf("ssl.key.location", t.KeyFile, "ssl.key.pem", t.KeyPEM.Reveal())
	if err != nil {
		return nil, err
	}
	switch {
	case cert == nil && key == nil:
		return cfg, nil
	case key == nil:
		return nil, errors.New("the client certificate has no key: set ssl.key.location too")
	case cert == nil:
		return nil, errors.New("the client key has no certificate: set ssl.certificate.location too")
	}
	if encrypted(key) {
		return nil, fmt.Errorf("%s: the key is encrypted, which is not supported; decrypt it with openssl pkey -in KEY -out PLAIN and make the file readable only for this program", keyFrom)
	}
	pair, err := tls.X509KeyPair(cert, key)
	if err != nil {
		return nil, fmt.Errorf("client certificate (%s, %s): %w", certFrom, keyFrom, err)
	}
	cfg.Certificates = []tls.Certificate{pair}
	return cfg, nil
}

// pemOf returns PEM text from a file or from a setting, nil if neither is set, and its
// origin for messages.
func pemOf(fileKey, file, textKey, text string) (data []byte, from string, err error) {
	switch {
	case file != "" && text != "":
		return nil, "", fmt.Errorf("both %s and %s are set: set one", fileKey, textKey)
	case file != "":
		data, err := os.ReadFile(file)
		if err != nil {
			return nil, "", fmt.Errorf("%s: %w", fileKey, err)
		}
		return data, fileKey + ": " + file, nil
	case text != "":
		return []byte(text), textKey, nil
	}
	return nil, "", nil
}

// encrypted reports whether PEM text holds an encrypted private key, in PKCS #8 form
// or with the older Proc-Type header.
func encrypted(data []byte) bool {
	for {
		block, rest := pem.Decode(data)
		if block == nil {
			return false
		}
		if block.Type == "ENCRYPTED PRIVATE KEY" || bytes.Contains([]byte(block.Headers["Proc-Type"]), []byte("ENCRYPTED")) {
			return true
		}
		data = rest
	}
}
