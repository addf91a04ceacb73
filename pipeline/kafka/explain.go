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

	"millrace/pipeline/kafka/auth"
)

// Ping connects to the cluster, authenticates, and closes the connection. Its error
// explains the problem and the remedy, see Explain.
func (c Config) Ping(ctx context.Context) error {
	c.Registerer = nil // no metrics for such a short-lived client
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

// Explain adds a remedy to an error of a client of this configuration, if a change of
// the configuration or of the broker's address can fix it. It returns other errors, and
// nil, unchanged. A failed connection attempt needs no Explain: the error of any client
// that can reach no broker holds the addresses and the remedy.
func (c Config) Explain(err error) error {
	if err == nil {
		return nil
	}
	err = trimDial(err)
	brokers := strings.Join(c.Brokers, ",")
	user := c.SASL.Username
	if c.SASL.Mechanism == auth.MechanismOAuth {
		user = c.SASL.OAuth.ClientID
	}
	var (
		unknownAuthority x509.UnknownAuthorityError
		hostname         x509.HostnameError
		invalid          x509.CertificateInvalidError
		record           tls.RecordHeaderError
		handshake        *handshakeError
		firstRead        *kgo.ErrFirstReadEOF
		unreachable      *unreachableError
	)
	explained := func(format string, args ...any) error {
		return fmt.Errorf("%s: %w", fmt.Sprintf(format, args...), err)
	}
	switch {
	case errors.As(err, &unreachable):
		return err // it holds the remedy
	case errors.Is(err, kerr.SaslAuthenticationFailed):
		return explained("the broker does not accept %s user %q; check the user name, the password and sasl.mechanism", c.SASL.Mechanism, user)
	case errors.Is(err, kerr.UnsupportedSaslMechanism):
		return explained("the broker does not offer SASL %s; set another sasl.mechanism", c.SASL.Mechanism)
	case errors.As(err, &unknownAuthority):
		return explained("no trusted authority signed the broker's certificate; set its authority with ssl.ca.location")
	case errors.As(err, &hostname):
		return explained("the broker's certificate is for %s; connect to it by that name, or set the name with ssl.server.name", names(hostname.Certificate))
	case errors.As(err, &invalid):
		return explained("the broker's certificate is not valid")
	case errors.As(err, &record), errors.As(err, &handshake) && unanswered(handshake):
		// A server without TLS reads the handshake as a very long message: Kafka
		// brokers close the connection, others wait for the rest of the message.
		return explained("the broker does not use TLS at this address; use its TLS port, or set security.protocol to %s", c.protocol(false))
	case errors.As(err, &firstRead), errors.Is(err, io.EOF) && c.SASL.Mechanism != "", errors.Is(err, syscall.ECONNRESET):
		// Brokers close the connection without an answer if they do not understand a
		// request; some also do so for a wrong password.
		switch {
		case c.SASL.Mechanism != "" && !c.TLS.Enabled:
			return explained("the broker at %s closed the connection; check the password of %s user %q, and whether it requires TLS (security.protocol=SASL_SSL)", brokers, c.SASL.Mechanism, user)
		case c.SASL.Mechanism != "":
			return explained("the broker at %s closed the connection; check the password of %s user %q", brokers, c.SASL.Mechanism, user)
		case c.TLS.Enabled:
			return explained("the broker at %s closed the connection; it may require SASL (security.protocol=SASL_SSL) or a client certificate (ssl.certificate.location)", brokers)
		default:
			return explained("the broker at %s closed the connection; it may require TLS or SASL: set security.protocol", brokers)
		}
	case errors.Is(err, context.DeadlineExceeded):
		return explained("no broker at %s answered in time; check that Kafka is running there, the address (-b/--brokers) and firewalls", brokers)
	}
	return err
}

// An unreachableError means that a connection to a broker could not be made. It is the
// one place for this text: [Config.dial] returns it, so it is in the chain of every
// error of a client that can reach no broker.
type unreachableError struct {
	seeds []string // Config.Brokers
	addr  string   // the address of this attempt
	err   error
}

func (e *unreachableError) Error() string {
	seeds := strings.Join(e.seeds, ",")
	// Omit the dialer's "dial tcp ADDRESS" if it only repeats the address.
	cause := e.err
	var op *net.OpError
	if errors.As(e.err, &op) && op.Addr != nil && op.Addr.String() == e.addr {
		cause = op.Err
	}
	if !slices.ContainsFunc(e.seeds, func(seed string) bool { return sameAddress(seed, e.addr) }) {
		return fmt.Sprintf("cannot reach the Kafka broker at %s, an address that the cluster at %s advertises; check that Kafka is running there, its advertised.listeners, and -b/--brokers: %v", e.addr, seeds, cause)
	}
	return fmt.Sprintf("cannot reach a Kafka broker at %s; check that Kafka is running there and that the address is right (-b/--brokers): %v", seeds, cause)
}

func (e *unreachableError) Unwrap() error { return e.err }

func sameAddress(a, b string) bool {
	hostA, portA := splitAddress(a)
	hostB, portB := splitAddress(b)
	return hostA == hostB && portA == portB
}

// trimDial removes the client's prefix of a failed dial from the text of an error: the
// text of [Config.dial] is complete without it. It keeps the error's chain. Every
// exported function of this package that sends requests applies it to its error.
func trimDial(err error) error {
	if err == nil || !strings.Contains(err.Error(), dialPrefix) {
		return err
	}
	return &trimmedError{err}
}

// dialPrefix begins the client's text of a failed dial.
const dialPrefix = "unable to dial: "

// trimmedError is an error without dialPrefix in its text.
type trimmedError struct{ error }

func (e *trimmedError) Error() string { return strings.ReplaceAll(e.error.Error(), dialPrefix, "") }
func (e *trimmedError) Unwrap() error { return e.error }

// names returns the names and addresses in a certificate.
func names(cert *x509.Certificate) string {
	list := slices.Clone(cert.DNSNames)
	for _, ip := range cert.IPAddresses {
		list = append(list, ip.String())
	}
	if len(list) == 0 {
		return "no name"
	}
	return strings.Join(list, ", ")
}

// unanswered reports whether a handshake failed without an answer from the server.
func unanswered(err error) bool {
	return errors.Is(err, context.DeadlineExceeded) || errors.Is(err, io.EOF) || errors.Is(err, syscall.ECONNRESET)
}

// protocol returns the security.protocol for the configuration with or without TLS.
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
