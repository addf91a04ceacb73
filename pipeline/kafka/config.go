package kafka

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/plugin/kprom"
)

// maxDecompressBatchBytes bounds what one fetched batch may unpack to, so that
// a few bytes in a topic cannot take all memory.
const maxDecompressBatchBytes = 64 << 20

// Config says how to reach a Kafka cluster. It is the part that all clients of
// a process have in common; what each does comes on top. The zero value with
// Brokers is a connection in the clear.
//
// [Sources] makes one from property files, environment and flags.
type Config struct {
	// Brokers are the addresses to ask for the cluster, each as host or
	// host:port; the port is 9092 if not given. One that answers is enough.
	Brokers []string

	// ClientID is what brokers know the client by, in logs and quotas;
	// "millrace" if empty.
	ClientID string
	// Version of the program, sent to brokers beside the software's name.
	Version string
	// Rack is where the client runs. Brokers that are set up for it let it
	// read from a replica nearby.
	Rack string

	TLS  TLS
	SASL SASL

	// DialTimeout bounds a connection attempt, TLS included; 10 s if zero.
	DialTimeout time.Duration

	// dialTCP, for tests, takes the place of the operating system's.
	dialTCP func(ctx context.Context, network, addr string) (net.Conn, error)

	// Logger gets what the client has to say; nothing is logged if nil.
	Logger *slog.Logger
	// Registerer gets the metrics of each client (millrace_kafka_*) for the
	// client's lifetime, told apart by the label client; none if nil.
	Registerer prometheus.Registerer
}

// Validate says what is wrong with the configuration, all of it at once. It
// reads the files that are named, and connects to nothing.
func (c Config) Validate() error {
	var faults []error
	if len(c.Brokers) == 0 {
		faults = append(faults, errors.New("bootstrap.servers: no broker is given; name one with --brokers host:port"))
	}
	for _, b := range c.Brokers {
		if err := checkAddress(b); err != nil {
			faults = append(faults, fmt.Errorf("bootstrap.servers: %w", err))
		}
	}
	if _, err := c.TLS.Config(); err != nil {
		faults = append(faults, err)
	}
	if err := c.SASL.validate(); err != nil {
		faults = append(faults, err)
	} else {
		for _, b := range c.Brokers {
			if err := c.checkCleartext(b); err != nil {
				faults = append(faults, err)
				break
			}
		}
	}
	return errors.Join(faults...)
}

func checkAddress(addr string) error {
	const form = "want host:port, such as kafka-1.example.com:9092"
	if addr == "" {
		return errors.New("an address is empty; " + form)
	}
	if _, _, ok := strings.Cut(addr, "://"); ok {
		return fmt.Errorf("%q: an address has no scheme; %s (security.protocol says how to talk)", addr, form)
	}
	host, port := splitAddress(addr)
	if host == "" || strings.ContainsAny(host, " \t/,;@") {
		return fmt.Errorf("%q is no address; %s", addr, form)
	}
	if n, err := strconv.Atoi(port); err != nil || n < 1 || n > 65535 {
		return fmt.Errorf("%q: the port is not a number from 1 to 65535; %s", addr, form)
	}
	return nil
}

// splitAddress splits host:port, the port being 9092 if there is none.
func splitAddress(addr string) (host, port string) {
	if host, port, err := net.SplitHostPort(addr); err == nil {
		return host, port
	}
	if ip := net.ParseIP(strings.Trim(addr, "[]")); ip != nil || !strings.Contains(addr, ":") {
		return strings.Trim(addr, "[]"), "9092"
	}
	return "", ""
}

// checkCleartext refuses to send a secret in the clear to another machine. It
// is asked again for every connection, because brokers name each other.
func (c Config) checkCleartext(addr string) error {
	if c.TLS.Enabled || c.SASL.AllowCleartext || !c.SASL.sendsSecret() {
		return nil
	}
	if host, _ := splitAddress(addr); isLoopback(host) {
		return nil
	}
	return fmt.Errorf("SASL %s would send its secret to %s unencrypted: set security.protocol=SASL_SSL (or sasl.allow.cleartext=true if everybody on the way is trusted)", c.SASL.Mechanism, addr)
}

func isLoopback(host string) bool {
	if ip := net.ParseIP(host); ip != nil {
		return ip.IsLoopback()
	}
	return host == "localhost"
}

// Options returns the options that every client of the process shares. They
// are for one client: call it for each.
func (c Config) Options() ([]kgo.Opt, error) {
	if err := c.Validate(); err != nil {
		return nil, err
	}
	clientID := c.ClientID
	if clientID == "" {
		clientID = "millrace"
	}
	opts := []kgo.Opt{
		kgo.SeedBrokers(c.Brokers...),
		kgo.ClientID(clientID),
		kgo.SoftwareNameAndVersion("millrace", softwareVersion(c.Version)),
		kgo.Dialer(c.dial),
		kgo.MaxDecompressBatchBytes(maxDecompressBatchBytes),
	}
	if c.Rack != "" {
		opts = append(opts, kgo.Rack(c.Rack))
	}
	if m := c.SASL.mechanism(); m != nil {
		opts = append(opts, kgo.SASL(m))
	}
	if c.Logger != nil {
		opts = append(opts, kgo.WithLogger(clientLogger{c.Logger}))
		if c.TLS.Enabled && c.TLS.InsecureSkipVerify {
			c.Logger.Warn("certificates of brokers are NOT verified: anybody on the way can read and change everything (enable.ssl.certificate.verification=false)")
		}
	}
	if c.Registerer != nil {
		opts = append(opts, kgo.WithHooks(&clientMetrics{
			// Without a registry of its own, it is one collector as a whole.
			Metrics: kprom.NewMetrics("millrace", kprom.Subsystem("kafka"), kprom.Registry(nil)),
			reg:     c.Registerer,
		}))
	}
	return opts, nil
}

func (c Config) dial(ctx context.Context, network, addr string) (net.Conn, error) {
	if err := c.checkCleartext(addr); err != nil {
		return nil, err
	}
	timeout := c.DialTimeout
	if timeout <= 0 {
		timeout = 10 * time.Second
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	conf, err := c.TLS.Config()
	if err != nil {
		return nil, err
	}
	dial := c.dialTCP
	if dial == nil {
		dial = (&net.Dialer{KeepAlive: 30 * time.Second}).DialContext
	}
	conn, err := dial(ctx, network, addr)
	if err != nil || conf == nil {
		return conn, err
	}
	if conf.ServerName == "" {
		conf.ServerName, _ = splitAddress(addr)
	}
	encrypted := tls.Client(conn, conf)
	if err := encrypted.HandshakeContext(ctx); err != nil {
		_ = conn.Close() // nothing was sent yet
		return nil, &handshakeError{addr, err}
	}
	return encrypted, nil
}

// A handshakeError says that somebody listens at an address, but that TLS did
// not come about.
type handshakeError struct {
	addr string
	err  error
}

func (e *handshakeError) Error() string { return "TLS with " + e.addr + ": " + e.err.Error() }
func (e *handshakeError) Unwrap() error { return e.err }

// softwareVersion makes a version fit what the protocol allows (KIP-511).
func softwareVersion(v string) string {
	v = strings.Trim(regexp.MustCompile(`[^a-zA-Z0-9.-]+`).ReplaceAllString(v, "-"), ".-")
	if v == "" {
		return "unknown"
	}
	return v
}

// clientLogger passes on what the client says. Its notices of normal work are
// many, so they are debug here, and its own debug is a level below that.
type clientLogger struct{ *slog.Logger }

func (l clientLogger) Level() kgo.LogLevel {
	ctx := context.Background()
	for _, level := range []kgo.LogLevel{kgo.LogLevelDebug, kgo.LogLevelInfo, kgo.LogLevelWarn, kgo.LogLevelError} {
		if l.Enabled(ctx, slogLevel(level)) {
			return level
		}
	}
	return kgo.LogLevelNone
}

func (l clientLogger) Log(level kgo.LogLevel, msg string, keyvals ...any) {
	l.Logger.Log(context.Background(), slogLevel(level), "kafka: "+msg, keyvals...)
}

// LevelTrace is the level of the client's own debug messages: every request.
const LevelTrace = slog.LevelDebug - 4

func slogLevel(level kgo.LogLevel) slog.Level {
	switch level {
	case kgo.LogLevelError:
		return slog.LevelError
	case kgo.LogLevelWarn:
		return slog.LevelWarn
	case kgo.LogLevelInfo:
		return slog.LevelDebug
	default:
		return LevelTrace
	}
}

// clientMetrics are the metrics of one client, registered as long as it lives.
// The clients of a process are numbered, by the first number that is free.
type clientMetrics struct {
	*kprom.Metrics
	reg prometheus.Registerer // wrapped with the number once it is known
}

func (m *clientMetrics) OnNewClient(cl *kgo.Client) {
	m.Metrics.OnNewClient(cl)
	for n := 0; ; n++ {
		reg := prometheus.WrapRegistererWith(prometheus.Labels{"client": strconv.Itoa(n)}, m.reg)
		err := reg.Register(m.Metrics)
		if err == nil {
			m.reg = reg
			return
		}
		if !errors.As(err, new(prometheus.AlreadyRegisteredError)) {
			return // work goes on without these metrics: nothing depends on them
		}
	}
}

func (m *clientMetrics) OnClientClosed(cl *kgo.Client) {
	m.reg.Unregister(m.Metrics)
	m.Metrics.OnClientClosed(cl)
}
