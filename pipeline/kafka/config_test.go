package kafka

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"io"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"millrace/pipeline/kafka/auth"
)

func TestValidate(t *testing.T) {
	scram := auth.SASL{Mechanism: "SCRAM-SHA-256", Username: "u", Password: auth.NewSecret("canary")}
	plain := auth.SASL{Mechanism: "PLAIN", Username: "u", Password: auth.NewSecret("canary")}
	token := auth.SASL{Mechanism: "OAUTHBEARER", OAuth: auth.OAuth{TokenURL: "https://id.example.com/token", ClientID: "c", ClientSecret: auth.NewSecret("canary")}}
	far := []string{"kafka.example.com:9092"}
	for _, tt := range []struct {
		name string
		cfg  Config
		want string // in the error; no error if empty
	}{
		{"brokers are enough", Config{Brokers: []string{"a", "b:1", "10.0.0.1:9092", "::1", "[::1]:9092", "fe80::1"}}, ""},
		{"no brokers", Config{}, "--brokers"},
		{"a broker with a scheme", Config{Brokers: []string{"SASL_SSL://a:1"}}, "security.protocol"},
		{"a port out of range", Config{Brokers: []string{"a:70000"}}, "1 to 65535"},
		{"a port that is no number", Config{Brokers: []string{"a:kafka"}}, "1 to 65535"},
		{"an empty broker", Config{Brokers: []string{""}}, "empty"},
		{"a broker with a user", Config{Brokers: []string{"u:p@a:1"}}, `"...@a:1": an address has no user`},
		{"a broker with a scheme and a user", Config{Brokers: []string{"kafka://u:p@q@a:1"}}, `"kafka://...@a:1": an address has no scheme`},
		{"two brokers in one", Config{Brokers: []string{"a:1,b:1"}}, "not an address"},
		{"a broker without a host", Config{Brokers: []string{":9092"}}, "not an address"},

		{"PLAIN in the clear on loopback", Config{Brokers: []string{"localhost:1", "127.0.0.1:1", "[::1]:1"}, SASL: plain}, ""},
		{"PLAIN in the clear", Config{Brokers: far, SASL: plain}, "security.protocol=SASL_SSL"},
		{"PLAIN in the clear to one of several", Config{Brokers: append([]string{"localhost"}, far...), SASL: plain}, "kafka.example.com:9092"},
		{"PLAIN with TLS", Config{Brokers: far, SASL: plain, TLS: auth.TLS{Enabled: true}}, ""},
		{"PLAIN in the clear, allowed", Config{Brokers: far, SASL: auth.SASL{Mechanism: "PLAIN", Username: "u", Password: plain.Password, AllowCleartext: true}}, ""},
		{"SCRAM in the clear", Config{Brokers: far, SASL: scram}, ""},
		{"OAUTHBEARER in the clear", Config{Brokers: far, SASL: token}, "sasl.allow.cleartext"},
		{"OAUTHBEARER with TLS", Config{Brokers: far, SASL: token, TLS: auth.TLS{Enabled: true}}, ""},

		{"no user", Config{Brokers: far, SASL: auth.SASL{Mechanism: "SCRAM-SHA-512"}}, "sasl.username"},
		{"no password", Config{Brokers: far, SASL: auth.SASL{Mechanism: "SCRAM-SHA-512", Username: "u"}}, "MILLRACE_SASL_PASSWORD_FILE"},
		{"no such mechanism", Config{Brokers: far, SASL: auth.SASL{Mechanism: "GSSAPI"}}, "not supported"},
		{"no token endpoint", Config{Brokers: far, SASL: auth.SASL{Mechanism: "OAUTHBEARER"}}, auth.OAuthKeyURL},
		{"a token endpoint in the clear", Config{Brokers: far, TLS: auth.TLS{Enabled: true}, SASL: auth.SASL{Mechanism: "OAUTHBEARER", OAuth: auth.OAuth{
			TokenURL: "http://id.example.com/token", ClientID: "c", ClientSecret: auth.NewSecret("canary"),
		}}}, "use https"},
		{"a token endpoint with a password in it", Config{Brokers: far, TLS: auth.TLS{Enabled: true}, SASL: auth.SASL{Mechanism: "OAUTHBEARER", OAuth: auth.OAuth{
			TokenURL: "https://u:canary@id.example.com/token", ClientID: "c", ClientSecret: auth.NewSecret("canary"),
		}}}, "no user or password"},

		{"no such CA file", Config{Brokers: far, TLS: auth.TLS{Enabled: true, CAFile: "no-such-file"}}, "ssl.ca.location: open no-such-file"},
		{"a CA file that is not PEM", Config{Brokers: far, TLS: auth.TLS{Enabled: true, CAPEM: "PK\x03\x04"}}, "keytool"},
		{"a CA twice", Config{Brokers: far, TLS: auth.TLS{Enabled: true, CAPEM: "a", CAFile: "b"}}, "set one"},
		{"a certificate without a key", Config{Brokers: far, TLS: auth.TLS{Enabled: true, CertPEM: "a"}}, "ssl.key.location"},
		{"a key without a certificate", Config{Brokers: far, TLS: auth.TLS{Enabled: true, KeyPEM: auth.NewSecret("canary")}}, "ssl.certificate.location"},
		{"an encrypted key", Config{Brokers: far, TLS: auth.TLS{Enabled: true, CertPEM: "a", KeyPEM: auth.NewSecret("-----BEGIN ENCRYPTED PRIVATE KEY-----\nY2FuYXJ5\n-----END ENCRYPTED PRIVATE KEY-----\n")}}, "openssl pkey"},
		{"an encrypted key of the old kind", Config{Brokers: far, TLS: auth.TLS{Enabled: true, CertPEM: "a", KeyPEM: auth.NewSecret("-----BEGIN RSA PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\nDEK-Info: AES-128-CBC,00\n\nY2FuYXJ5\n-----END RSA PRIVATE KEY-----\n")}}, "openssl pkey"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			err := tt.cfg.Validate()
			switch {
			case tt.want == "" && err != nil:
				t.Errorf("got %v", err)
			case tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)):
				t.Errorf("got %v, want %q in it", err, tt.want)
			case err != nil && strings.Contains(err.Error(), "canary"):
				t.Errorf("a secret is shown: %v", err)
			}
		})
	}
}

// authority issues certificates for tests.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	pem  string
}

func newAuthority(t *testing.T) *authority {
	t.Helper()
	a := &authority{}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test authority"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	if a.cert, err = x509.ParseCertificate(der); err != nil {
		t.Fatal(err)
	}
	a.key = key
	a.pem = string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
	return a
}

// issue returns a certificate for the name, and its key, as PEM.
func (a *authority) issue(t *testing.T, name string, ips ...net.IP) (cert, key string) {
	t.Helper()
	priv, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		DNSNames: []string{name}, IPAddresses: ips,
		KeyUsage:    x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, a.cert, &priv.PublicKey, a.key)
	if err != nil {
		t.Fatal(err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(priv)
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})),
		string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER}))
}

func (a *authority) server(t *testing.T, name string, ips ...net.IP) *tls.Config {
	t.Helper()
	cert, key := a.issue(t, name, ips...)
	pair, err := tls.X509KeyPair([]byte(cert), []byte(key))
	if err != nil {
		t.Fatal(err)
	}
	return &tls.Config{Certificates: []tls.Certificate{pair}}
}

func tempFile(t *testing.T, name, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func ping(t *testing.T, cfg Config) error {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	return cfg.Ping(ctx)
}

// Connections to brokers with each kind of security, and the errors of failed connections.
func TestPing(t *testing.T) {
	home := net.IPv4(127, 0, 0, 1)
	ca, other := newAuthority(t), newAuthority(t)
	cert, key := ca.issue(t, "client")

	encrypted := newCluster(t, 1, kfake.TLS(ca.server(t, "kafka", home))).ListenAddrs()
	elsewhere := newCluster(t, 1, kfake.TLS(ca.server(t, "kafka.example.com"))).ListenAddrs()
	mutualConf := ca.server(t, "kafka", home)
	mutualConf.ClientAuth = tls.RequireAndVerifyClientCert
	mutualConf.ClientCAs = x509.NewCertPool()
	mutualConf.ClientCAs.AddCert(ca.cert)
	mutual := newCluster(t, 1, kfake.TLS(mutualConf)).ListenAddrs()
	users := []kfake.Opt{
		kfake.EnableSASL(), kfake.Superuser("PLAIN", "u", "canary"),
		kfake.Superuser("SCRAM-SHA-256", "u", "canary"), kfake.Superuser("SCRAM-SHA-512", "u", "canary"),
	}
	sasl := newCluster(t, 1, users...).ListenAddrs()
	saslTLS := newCluster(t, 1, append(users, kfake.TLS(ca.server(t, "kafka", home)))...).ListenAddrs()
	open := newCluster(t, 1).ListenAddrs()
	unused, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	closed := unused.Addr().String()
	if err := unused.Close(); err != nil {
		t.Fatal(err)
	}

	trusting := auth.TLS{Enabled: true, CAPEM: ca.pem}
	user := func(mechanism, password string) auth.SASL {
		return auth.SASL{Mechanism: mechanism, Username: "u", Password: auth.NewSecret(password)}
	}
	for _, tt := range []struct {
		name string
		cfg  Config
		want []string // in the error; no error if empty
	}{
		{"in the clear", Config{Brokers: open}, nil},
		{"TLS", Config{Brokers: encrypted, TLS: trusting}, nil},
		{"TLS with the authority in a file", Config{Brokers: encrypted, TLS: auth.TLS{Enabled: true, CAFile: tempFile(t, "ca.pem", ca.pem)}}, nil},
		{"TLS with another name", Config{Brokers: elsewhere, TLS: auth.TLS{Enabled: true, CAPEM: ca.pem, ServerName: "kafka.example.com"}}, nil},
		{"TLS without verification", Config{Brokers: elsewhere, TLS: auth.TLS{Enabled: true, InsecureSkipVerify: true}}, nil},
		{"mutual TLS", Config{Brokers: mutual, TLS: auth.TLS{Enabled: true, CAPEM: ca.pem, CertPEM: cert, KeyPEM: auth.NewSecret(key)}}, nil},
		{"mutual TLS from one file", Config{Brokers: mutual, TLS: auth.TLS{
			Enabled: true, CAPEM: ca.pem, CertFile: tempFile(t, "client.pem", key+cert), KeyFile: tempFile(t, "client.pem", key+cert),
		}}, nil},
		{"PLAIN", Config{Brokers: sasl, SASL: user("PLAIN", "canary")}, nil},
		{"SCRAM-SHA-256", Config{Brokers: sasl, SASL: user("SCRAM-SHA-256", "canary")}, nil},
		{"SCRAM-SHA-512", Config{Brokers: sasl, SASL: user("SCRAM-SHA-512", "canary")}, nil},
		{"SCRAM-SHA-512 over TLS", Config{Brokers: saslTLS, TLS: trusting, SASL: user("SCRAM-SHA-512", "canary")}, nil},

		{"wrong password for PLAIN", Config{Brokers: sasl, SASL: user("PLAIN", "canary-2")}, []string{`password of PLAIN user "u"`, sasl[0]}},
		{"wrong password for SCRAM", Config{Brokers: sasl, SASL: user("SCRAM-SHA-256", "canary-2")}, []string{`password of SCRAM-SHA-256 user "u"`}},
		{"wrong password over TLS", Config{Brokers: saslTLS, TLS: trusting, SASL: user("PLAIN", "canary-2")}, []string{`password of PLAIN user "u"`}},
		{"no SASL where it is required", Config{Brokers: sasl}, []string{"security.protocol", "SASL"}},
		{"no TLS where it is required", Config{Brokers: encrypted}, []string{"security.protocol", "TLS"}},
		{"TLS with a broker without TLS", Config{Brokers: open, TLS: trusting, DialTimeout: 3 * time.Second}, []string{"does not use TLS", "security.protocol"}},
		{"an unknown authority", Config{Brokers: encrypted, TLS: auth.TLS{Enabled: true, CAPEM: other.pem}}, []string{"ssl.ca.location"}},
		{"an authority the system does not know", Config{Brokers: encrypted, TLS: auth.TLS{Enabled: true}}, []string{"ssl.ca.location"}},
		{"a certificate for another name", Config{Brokers: elsewhere, TLS: trusting}, []string{"ssl.server.name", "kafka.example.com"}},
		{"no client certificate where it is required", Config{Brokers: mutual, TLS: trusting}, []string{"certificate"}},
		{"no listener", Config{Brokers: []string{closed}}, []string{"cannot reach a Kafka broker at " + closed}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			err := ping(t, tt.cfg)
			if len(tt.want) == 0 && err != nil {
				t.Fatal(err)
			}
			if len(tt.want) > 0 && err == nil {
				t.Fatal("it connected")
			}
			for _, want := range tt.want {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("got %v, want %q in it", err, want)
				}
			}
			if err != nil && strings.Contains(err.Error(), "canary") {
				t.Errorf("a secret is shown: %v", err)
			}
			if err != nil {
				t.Log(err)
			}
		})
	}
}

// Kafka answers a wrong password with an error code; kfake closes the connection.
func TestPingExplainsWhatBrokersAnswer(t *testing.T) {
	for _, tt := range []struct {
		code int16
		want string
	}{
		{kerr.SaslAuthenticationFailed.Code, `does not accept PLAIN user "u"`},
		{kerr.UnsupportedSaslMechanism.Code, "does not offer SASL PLAIN"},
	} {
		c := newCluster(t, 1, kfake.EnableSASL(), kfake.Superuser("PLAIN", "u", "canary"))
		c.ControlKey(int16(kmsg.SASLHandshake), func(req kmsg.Request) (kmsg.Response, error, bool) {
			c.KeepControl()
			if tt.code != kerr.UnsupportedSaslMechanism.Code {
				return nil, nil, false
			}
			resp := req.ResponseKind().(*kmsg.SASLHandshakeResponse)
			resp.ErrorCode = tt.code
			return resp, nil, true
		})
		c.ControlKey(int16(kmsg.SASLAuthenticate), func(req kmsg.Request) (kmsg.Response, error, bool) {
			c.KeepControl()
			resp := req.ResponseKind().(*kmsg.SASLAuthenticateResponse)
			resp.ErrorCode = tt.code
			return resp, nil, true
		})
		err := ping(t, Config{Brokers: c.ListenAddrs(), SASL: auth.SASL{Mechanism: "PLAIN", Username: "u", Password: auth.NewSecret("canary")}})
		if err == nil || !strings.Contains(err.Error(), tt.want) || strings.Contains(err.Error(), "canary") {
			t.Errorf("got %v, want %q in it", err, tt.want)
		}
		t.Log(err)
	}
}

// A local broker may advertise brokers on other machines.
func TestNoSecretIsSentUnencryptedToAdvertisedBrokers(t *testing.T) {
	cfg := Config{Brokers: []string{"localhost:9092"}, SASL: auth.SASL{Mechanism: "PLAIN", Username: "u", Password: auth.NewSecret("canary")}}
	if err := cfg.Validate(); err != nil {
		t.Fatal(err)
	}
	_, err := cfg.dial(t.Context(), "tcp", "192.0.2.1:9092")
	if err == nil || !strings.Contains(err.Error(), "unencrypted") {
		t.Errorf("got %v", err)
	}
}

func TestARenewedCertificateNeedsNoRestart(t *testing.T) {
	old, renewed := newAuthority(t), newAuthority(t)
	c := newCluster(t, 1, kfake.TLS(renewed.server(t, "kafka", net.IPv4(127, 0, 0, 1))))
	file := tempFile(t, "ca.pem", old.pem)
	cfg := Config{Brokers: c.ListenAddrs(), TLS: auth.TLS{Enabled: true, CAFile: file}}
	opts, err := cfg.Options()
	if err != nil {
		t.Fatal(err)
	}
	cl, err := kgo.NewClient(append(opts, kgo.RequestRetries(1))...)
	if err != nil {
		t.Fatal(err)
	}
	defer cl.Close()
	if err := cl.Ping(t.Context()); err == nil {
		t.Fatal("the authority is not trusted yet")
	}
	if err := os.WriteFile(file, []byte(renewed.pem), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := cl.Ping(t.Context()); err != nil {
		t.Fatal(err)
	}
}

func TestBrokersAndLogsLearnClientIDAndVersion(t *testing.T) {
	c := newCluster(t, 1, kfake.EnableSASL(), kfake.Superuser("SCRAM-SHA-256", "u", "canary"))
	var mu sync.Mutex
	var software, id string
	c.ControlKey(int16(kmsg.ApiVersions), func(req kmsg.Request) (kmsg.Response, error, bool) {
		c.KeepControl()
		r := req.(*kmsg.ApiVersionsRequest)
		mu.Lock()
		defer mu.Unlock()
		software = r.ClientSoftwareName + " " + r.ClientSoftwareVersion
		return nil, nil, false
	})
	var log bytes.Buffer
	cfg := Config{
		Brokers: c.ListenAddrs(), ClientID: "millrace-x/v1", Version: "v1.2.3+dirty",
		SASL:   auth.SASL{Mechanism: "SCRAM-SHA-256", Username: "u", Password: auth.NewSecret("canary")},
		Logger: slog.New(slog.NewJSONHandler(&log, &slog.HandlerOptions{Level: LevelTrace})),
	}
	opts, err := cfg.Options()
	if err != nil {
		t.Fatal(err)
	}
	cl, err := kgo.NewClient(opts...)
	if err != nil {
		t.Fatal(err)
	}
	if err := cl.Ping(t.Context()); err != nil {
		t.Fatal(err)
	}
	id = cl.OptValue(kgo.ClientID).(string)
	cl.Close()
	mu.Lock()
	defer mu.Unlock()
	if software != "millrace v1.2.3-dirty" || id != "millrace-x/v1" {
		t.Errorf("software %q, client id %q", software, id)
	}
	if !strings.Contains(log.String(), `"msg":"kafka: `) {
		t.Error("the client logs nothing")
	}
	if strings.Contains(log.String(), "canary") {
		t.Errorf("a secret is logged: %s", log.String())
	}
}

func TestTheLevelOfClientMessages(t *testing.T) {
	for _, tt := range []struct {
		level slog.Level
		want  kgo.LogLevel
	}{
		{LevelTrace, kgo.LogLevelDebug},
		{slog.LevelDebug, kgo.LogLevelInfo},
		{slog.LevelInfo, kgo.LogLevelWarn},
		{slog.LevelWarn, kgo.LogLevelWarn},
		{slog.LevelError, kgo.LogLevelError},
		{slog.LevelError + 4, kgo.LogLevelNone},
	} {
		var log bytes.Buffer
		l := clientLogger{slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: tt.level}))}
		if got := l.Level(); got != tt.want {
			t.Errorf("at %v the client logs %v, want %v", tt.level, got, tt.want)
		}
	}
}

func TestAttributesOfClientMessagesAreReadable(t *testing.T) {
	for _, handler := range []func(io.Writer) slog.Handler{
		func(w io.Writer) slog.Handler { return slog.NewJSONHandler(w, nil) },
		func(w io.Writer) slog.Handler { return slog.NewTextHandler(w, nil) },
	} {
		var log bytes.Buffer
		refused := &unreachableError{[]string{"a"}, "a:9092", syscall.ECONNREFUSED}
		keyvals := []any{"after", 250 * time.Millisecond, "tries", 3, "err", refused}
		clientLogger{slog.New(handler(&log))}.Log(kgo.LogLevelWarn, "retrying", keyvals...)
		if !strings.Contains(log.String(), "250ms") || strings.Contains(log.String(), "250000000") {
			t.Errorf("logged %s", log.String())
		}
		if !strings.Contains(log.String(), "connection refused") || strings.Contains(log.String(), "--brokers") {
			t.Errorf("logged %s, want only the cause of the error", log.String())
		}
		if keyvals[1] != 250*time.Millisecond {
			t.Error("the attributes of the caller were changed")
		}
	}
}

func TestDisabledVerificationLogsAWarning(t *testing.T) {
	var log bytes.Buffer
	cfg := Config{Brokers: []string{"a"}, TLS: auth.TLS{Enabled: true, InsecureSkipVerify: true}, Logger: slog.New(slog.NewTextHandler(&log, nil))}
	if _, err := cfg.Options(); err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(log.String(), "level=WARN") || !strings.Contains(log.String(), "NOT verified") {
		t.Errorf("logged %q", log.String())
	}
}

// The clients of a process share a registry. Closing a client removes its metrics.
func TestMetricsOfSeveralClients(t *testing.T) {
	c := newCluster(t, 1)
	reg := prometheus.NewPedanticRegistry()
	start := func() *kgo.Client {
		t.Helper()
		opts, err := Config{Brokers: c.ListenAddrs(), Registerer: reg}.Options()
		if err != nil {
			t.Fatal(err)
		}
		cl, err := kgo.NewClient(opts...)
		if err != nil {
			t.Fatal(err)
		}
		if err := cl.Ping(t.Context()); err != nil {
			t.Fatal(err)
		}
		return cl
	}
	clients := func() int {
		t.Helper()
		n, err := testutil.GatherAndCount(reg, "millrace_kafka_buffered_produce_records")
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	a, b := start(), start()
	if n := clients(); n != 2 {
		t.Errorf("%d clients have metrics, want 2", n)
	}
	a.Close()
	if n := clients(); n != 1 {
		t.Errorf("%d clients have metrics after one is closed, want 1", n)
	}
	a = start()
	if n := clients(); n != 2 {
		t.Errorf("%d clients have metrics after one came back, want 2", n)
	}
	a.Close()
	b.Close()
	if n := clients(); n != 0 {
		t.Errorf("%d clients have metrics after all are closed, want 0", n)
	}
}

// kfake does not support OAUTHBEARER, so the test answers the SASL requests.
func TestTheTokenReachesTheBroker(t *testing.T) {
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprint(w, `{"access_token": "token-1", "expires_in": "3600"}`)
	}))
	defer srv.Close()
	c := newCluster(t, 1)
	seen := make(chan string, 16)
	c.ControlKey(int16(kmsg.SASLHandshake), func(req kmsg.Request) (kmsg.Response, error, bool) {
		c.KeepControl()
		return req.ResponseKind(), nil, true
	})
	c.ControlKey(int16(kmsg.SASLAuthenticate), func(req kmsg.Request) (kmsg.Response, error, bool) {
		c.KeepControl()
		seen <- string(req.(*kmsg.SASLAuthenticateRequest).SASLAuthBytes)
		return req.ResponseKind(), nil, true
	})
	if err := ping(t, Config{Brokers: c.ListenAddrs(), SASL: auth.SASL{Mechanism: "OAUTHBEARER", OAuth: auth.OAuth{
		TokenURL: srv.URL, ClientID: "c", ClientSecret: auth.NewSecret("canary"), Extensions: map[string]string{"pool": "p"},
	}}}); err != nil {
		t.Fatal(err)
	}
	if got, want := <-seen, "n,,\x01auth=Bearer token-1\x01pool=p\x01\x01"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

// Tools take a metric with such a name for a counter.
func TestNoGaugeOfAClientIsNamedTotal(t *testing.T) {
	c, err := kfake.NewCluster(kfake.NumBrokers(1))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	reg := prometheus.NewRegistry()
	opts, err := Config{Brokers: c.ListenAddrs(), Registerer: reg}.Options()
	if err != nil {
		t.Fatal(err)
	}
	cl, err := kgo.NewClient(opts...)
	if err != nil {
		t.Fatal(err)
	}
	defer cl.Close()
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	gauges := 0
	for _, f := range families {
		if f.GetType().String() == "GAUGE" {
			gauges++
			if strings.HasSuffix(f.GetName(), "_total") {
				t.Errorf("%s is a gauge", f.GetName())
			}
		}
	}
	if gauges < 4 {
		t.Errorf("only %d gauges", gauges)
	}
}
