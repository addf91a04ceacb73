package kafka

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"strings"
	"syscall"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
)

// Ping connects to the cluster, proves who the client is, and closes again. Its
// error says what is wrong and what to try.
func (c Config) Ping(ctx context.Context) error {
	c.Registerer = nil // a client that is gone in a moment has no metrics
	opts, err := c.Options()
	if err != nil {
		return err
	}
	cl, err := kgo.NewClient(append(opts, kgo.RequestRetries(1))...)
	if err != nil {
		return err
	}
	defer cl.Close()
	return c.Explain(cl.Ping(ctx))
}

// Explain adds to an error of a client of this configuration what to do about
// it, if it is one of those that are mended by configuration. Other errors, and
// nil, come back as they are.
func (c Config) Explain(err error) error {
	if err == nil {
		return nil
	}
	brokers := strings.Join(c.Brokers, ",")
	user := c.SASL.Username
	if c.SASL.Mechanism == mechanismOAuth {
		user = c.SASL.OAuth.ClientID
	}
	var (
		unknownAuthority x509.UnknownAuthorityError
		hostname         x509.HostnameError
		invalid          x509.CertificateInvalidError
		record           tls.RecordHeaderError
		handshake        *handshakeError
		firstRead        *kgo.ErrFirstReadEOF
		dns              *net.DNSError
	)
	say := func(format string, args ...any) error {
		return fmt.Errorf("%s: %w", fmt.Sprintf(format, args...), err)
	}
	switch {
	case errors.Is(err, kerr.SaslAuthenticationFailed):
		return say("the broker does not accept %s user %q; check the user name, the password and sasl.mechanism", c.SASL.Mechanism, user)
	case errors.Is(err, kerr.UnsupportedSaslMechanism):
		return say("the broker does not offer SASL %s; set another sasl.mechanism", c.SASL.Mechanism)
	case errors.As(err, &unknownAuthority):
		return say("the broker's certificate is signed by nobody whom we trust; name its authority with ssl.ca.location")
	case errors.As(err, &hostname):
		return say("the broker's certificate is for %s; dial it by that name, or say it with ssl.server.name", names(hostname.Certificate))
	case errors.As(err, &invalid):
		return say("the broker's certificate is not valid")
	case errors.As(err, &record), errors.As(err, &handshake) && silent(handshake):
		// Whoever does not talk TLS takes its greeting for a very long message:
		// real brokers hang up on that, others wait for the rest of it.
		return say("the broker does not talk TLS at this address; use its TLS port, or set security.protocol to %s", c.protocol(false))
	case errors.As(err, &firstRead), errors.Is(err, io.EOF) && c.SASL.Mechanism != "", errors.Is(err, syscall.ECONNRESET):
		// Brokers hang up without a word on whatever they do not understand;
		// some also on a wrong password.
		switch {
		case c.SASL.Mechanism != "" && !c.TLS.Enabled:
			return say("the broker at %s closed the connection; check the password of %s user %q, and whether it wants TLS (security.protocol=SASL_SSL)", brokers, c.SASL.Mechanism, user)
		case c.SASL.Mechanism != "":
			return say("the broker at %s closed the connection; check the password of %s user %q", brokers, c.SASL.Mechanism, user)
		case c.TLS.Enabled:
			return say("the broker at %s closed the connection; it may want SASL (security.protocol=SASL_SSL) or a client certificate (ssl.certificate.location)", brokers)
		default:
			return say("the broker at %s closed the connection; it may want TLS or SASL: set security.protocol", brokers)
		}
	case errors.As(err, &dns):
		return say("the host of a broker is not known; check %s", brokers)
	case errors.Is(err, syscall.ECONNREFUSED):
		return say("nothing listens at %s; is Kafka running, and is this its address (--brokers)?", brokers)
	case errors.Is(err, context.DeadlineExceeded):
		return say("no answer from %s in time; check the address (--brokers), and for firewalls", brokers)
	}
	return err
}

// names returns what a certificate is for.
func names(cert *x509.Certificate) string {
	list := slices.Clone(cert.DNSNames)
	for _, ip := range cert.IPAddresses {
		list = append(list, ip.String())
	}
	if len(list) == 0 {
		return "no name at all"
	}
	return strings.Join(list, ", ")
}

// silent reports whether a handshake failed without a word from the other side.
func silent(err error) bool {
	return errors.Is(err, context.DeadlineExceeded) || errors.Is(err, io.EOF) || errors.Is(err, syscall.ECONNRESET)
}

// protocol returns the security.protocol of the configuration, with TLS or not.
func (c Config) protocol(encrypt bool) string {
	switch {
	case c.SASL.Mechanism != "" && encrypt:
		return "SASL_SSL"
	case c.SASL.Mechanism != "":
		return "SASL_PLAINTEXT"
	case encrypt:
		return "SSL"
	}
	return "PLAINTEXT"
}
