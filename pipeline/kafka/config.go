package kafka

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/plugin/kprom"

	"millrace/pipeline"
	"millrace/pipeline/kafka/auth"
	"millrace/pipeline/kafka/gauges"
)

// maxDecompressBatchBytes bounds the decompressed size of one fetched batch, so a few
// compressed bytes in a topic cannot use up all memory.
const maxDecompressBatchBytes = 64 << 20

// Config holds the settings for connecting to a Kafka cluster, which all clients of a
// process share. A Config with only Brokers connects unencrypted.
//
// [Sources] builds a Config from property files, environment and flags.
type Config struct {
	// Brokers are the bootstrap addresses, each as host or host:port; the default
	// port is 9092. It is enough if one of them answers.
	Brokers []string

	// ClientID identifies the client in logs and quotas of brokers; "millrace" if
	// empty.
	ClientID string
	// Version of the program, sent to brokers with the software name.
	Version string
	// Rack is the location of the client. Brokers that support it let the client
	// read from a replica in the same rack.
	Rack string

	TLS  auth.TLS
	SASL auth.SASL

	// Partitioners are those of the topics that are written; that of other topics is
	// [pipeline.Murmur2].
	Partitioners map[string]pipeline.Partitioner

	// Patience is how long requests about topics and groups wait for brokers that are
	// still starting. Zero: such an error is returned.
	Patience time.Duration

	// DialTimeout bounds a connection attempt, TLS included; 10 s if zero.
	DialTimeout time.Duration

	// dialTCP replaces the dialer of the operating system in tests.
	dialTCP func(ctx context.Context, network, addr string) (net.Conn, error)

	// Logger receives the log messages of clients; nothing is logged if nil.
	Logger *slog.Logger
	// Registerer holds the metrics (millrace_kafka_*) of each client for the
	// client's lifetime, distinguished by the label client; no metrics if nil.
	Registerer prometheus.Registerer
}

// Validate checks the configuration and returns all errors together. It reads the
// named files, but does not connect.
func (c Config) Validate() error {
	var faults []error
	if len(c.Brokers) == 0 {
		faults = append(faults, errors.New("bootstrap.servers: no broker is set; set one with --brokers host:port"))
	}
	for _, b := range c.Brokers {
		if err := checkAddress(b); err != nil {
			faults = append(faults, fmt.Errorf("bootstrap.servers: %w", err))
		}
	}
	if _, err := c.TLS.Config(); err != nil {
		faults = append(faults, err)
	}
	if err := c.SASL.Validate(); err != nil {
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
		return fmt.Errorf("%q: an address has no scheme; %s (security.protocol selects TLS and SASL)", withoutUser(addr), form)
	}
	host, port := splitAddress(addr)
	if strings.Contains(addr, "@") {
		return fmt.Errorf("%q: an address has no user; %s (sasl.username and sasl.password are settings)", withoutUser(addr), form)
	}
	if host == "" || strings.ContainsAny(host, " \t/,;") {
		return fmt.Errorf("%q is not an address; %s", addr, form)
	}
	if n, err := strconv.Atoi(port); err != nil || n < 1 || n > 65535 {
		return fmt.Errorf("%q: the port is not a number from 1 to 65535; %s", addr, form)
	}
	return nil
}

// withoutUser returns an address, or what was given as one, without a user and password.
func withoutUser(addr string) string {
	at := strings.LastIndexByte(addr, '@')
	if at < 0 {
		return addr
	}
	scheme := ""
	if i := strings.Index(addr, "://"); i >= 0 && i < at {
		scheme = addr[:i+3]
	}
	return scheme + "..." + addr[at:]
}

// splitAddress splits host:port; the default port is 9092. It returns empty strings
// if addr is not an address.
func splitAddress(addr string) (host, port string) {
	if host, port, err := net.SplitHostPort(addr); err == nil {
		return host, port
	}
	if ip := net.ParseIP(strings.Trim(addr, "[]")); ip != nil || !strings.Contains(addr, ":") {
		return strings.Trim(addr, "[]"), "9092"
	}
	return "", ""
}

// checkCleartext returns an error if a connection would send a secret unencrypted to
// another machine. It is called again for every connection, because brokers advertise
// the addresses of other brokers.
func (c Config) checkCleartext(addr string) error {
	if host, _ := splitAddress(addr); c.TLS.Enabled || !c.SASL.Exposes(host) {
		return nil
	}
	return fmt.Errorf("SASL %s would send its secret to %s unencrypted: set security.protocol=SASL_SSL (or sasl.allow.cleartext=true if the network is trusted)", c.SASL.Mechanism, withoutUser(addr))
}

// Options returns the options that all clients of a process share. Call it once per
// client: the options hold state of that client.
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
	if m := c.SASL.Client(); m != nil {
		opts = append(opts, kgo.SASL(m))
	}
	if c.Logger != nil {
		opts = append(opts, kgo.WithLogger(clientLogger{c.Logger}))
		if c.TLS.Enabled && c.TLS.InsecureSkipVerify {
			c.Logger.Warn("broker certificates are NOT verified: anyone on the network path can read and change all data (enable.ssl.certificate.verification=false)")
		}
	}
	if c.Registerer != nil {
		opts = append(opts, kgo.WithHooks(&clientMetrics{
			// With a nil registry, Metrics is a single collector that we register.
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
	switch {
	case errors.Is(err, context.Canceled): // the client closes
		return nil, err
	case err != nil:
		return nil, &unreachableError{seeds: c.Brokers, addr: addr, err: err}
	case conf == nil:
		return conn, nil
	}
	if conf.ServerName == "" {
		conf.ServerName, _ = splitAddress(addr)
	}
	encrypted := tls.Client(conn, conf)
	if err := encrypted.HandshakeContext(ctx); err != nil {
		_ = conn.Close() // no data was sent
		return nil, &handshakeError{addr, err}
	}
	return encrypted, nil
}

// A handshakeError means that the address accepts connections, but that the TLS
// handshake failed.
type handshakeError struct {
	addr string
	err  error
}

func (e *handshakeError) Error() string { return "TLS with " + e.addr + ": " + e.err.Error() }
func (e *handshakeError) Unwrap() error { return e.err }

// softwareVersion replaces the characters of a version that the protocol does not
// allow (KIP-511).
func softwareVersion(v string) string {
	v = strings.Trim(regexp.MustCompile(`[^a-zA-Z0-9.-]+`).ReplaceAllString(v, "-"), ".-")
	if v == "" {
		return "unknown"
	}
	return v
}

// clientLogger logs the client's messages. The client logs a lot at level info during
// normal operation, so this is debug here, and its debug level is [LevelTrace].
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
	if level == kgo.LogLevelError && aboutInstance(msg, keyvals) {
		level = kgo.LogLevelInfo // repeated until the group removes the other member; the session reports it
	}
	l.Logger.Log(context.Background(), slogLevel(level), "kafka: "+msg, readable(keyvals)...)
}

// aboutInstance reports whether a message says that another member has the instance id.
func aboutInstance(msg string, keyvals []any) bool {
	return strings.HasPrefix(msg, "UnreleasedInstanceID") || slices.ContainsFunc(keyvals, func(v any) bool {
		err, ok := v.(error)
		return ok && errors.Is(err, kerr.UnreleasedInstanceID)
	})
}

// readable returns the attributes in a readable form. Durations become strings such as
// "100ms": the JSON handler would log nanoseconds without a unit. Of an
// [unreachableError] only the cause remains: the client logs it at every attempt, and
// the caller of the client reports the remedy.
func readable(keyvals []any) []any {
	out := slices.Clone(keyvals)
	for i, v := range out {
		switch v := v.(type) {
		case time.Duration:
			out[i] = v.String()
		case error:
			var unreachable *unreachableError
			if errors.As(v, &unreachable) {
				out[i] = unreachable.err
			}
		}
	}
	return out
}

// LevelTrace is the log level of the client's debug messages, which report every
// request.
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

// clientMetrics are the metrics of one client, registered for its lifetime. The label
// client is the first number that no other client of the process uses.
type clientMetrics struct {
	*kprom.Metrics
	gauges prometheus.Collector
	reg    prometheus.Registerer // wrapped with the client label once its number is known
}

func (m *clientMetrics) OnNewClient(cl *kgo.Client) {
	m.Metrics.OnNewClient(cl)
	m.gauges = gauges.Renamed(m.Metrics, cl)
	for n := 0; ; n++ {
		reg := prometheus.WrapRegistererWith(prometheus.Labels{"client": strconv.Itoa(n)}, m.reg)
		err := reg.Register(m.gauges)
		if err == nil {
			m.reg = reg
			return
		}
		if !errors.As(err, new(prometheus.AlreadyRegisteredError)) {
			return // continue without these metrics: nothing depends on them
		}
	}
}

func (m *clientMetrics) OnClientClosed(cl *kgo.Client) {
	m.reg.Unregister(m.gauges)
	m.Metrics.OnClientClosed(cl)
}
