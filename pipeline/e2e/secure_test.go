package e2e

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"millrace/pipeline/e2e/kafkatest"
	"millrace/pipeline/sandbox"
)

// scheme is how the programs are called: secureHTTP sets it to https.
var scheme = "http://"

// The callers of the programs, when their HTTP is secured.
const (
	workerToken = "token-of-the-workers-of-the-tests"
	callers     = "tokens:\n  - {name: workers, roles: [worker], token: " + workerToken + "}\n"
)

// secureHTTP gives all programs that the tests start TLS and callers, and the tests the
// token of a caller. The suite on Apache Kafka runs so; the other tests run without.
func secureHTTP(dir string) error {
	certificate, key, err := selfSigned()
	if err != nil {
		return err
	}
	var errs []error
	for name, file := range map[string]struct {
		content []byte
		env     []string
	}{
		"server.pem":   {certificate, []string{"MILLRACE_TLS_CERT", "MILLRACE_SERVER_CA"}},
		"server.key":   {key, []string{"MILLRACE_TLS_KEY"}},
		"callers.yaml": {[]byte(callers), []string{"MILLRACE_AUTH_FILE"}},
		"token":        {[]byte(workerToken), []string{"MILLRACE_TOKEN_FILE"}},
	} {
		path := filepath.Join(dir, name)
		errs = append(errs, os.WriteFile(path, file.content, 0o600))
		for _, variable := range file.env {
			errs = append(errs, os.Setenv(variable, path))
		}
	}
	trusted := x509.NewCertPool()
	trusted.AppendCertsFromPEM(certificate)
	scheme = "https://"
	http.DefaultClient.Transport = tokenTransport{&http.Transport{TLSClientConfig: &tls.Config{RootCAs: trusted, MinVersion: tls.VersionTLS12}, ForceAttemptHTTP2: true}}
	return errors.Join(errs...)
}

// tokenTransport sends the token to the programs. Registries are called without TLS.
type tokenTransport struct{ base *http.Transport }

func (t tokenTransport) RoundTrip(r *http.Request) (*http.Response, error) {
	if r.URL.Scheme == "https" {
		r = r.Clone(r.Context())
		r.Header.Set("Authorization", "Bearer "+workerToken)
	}
	return t.base.RoundTrip(r)
}

// selfSigned returns a certificate for the loopback addresses, which is its own authority,
// and its key, in PEM.
func selfSigned() (certificate, key []byte, err error) {
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, err
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "millrace tests"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1), net.IPv6loopback}, DNSNames: []string{"localhost"},
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, private.Public(), private)
	if err != nil {
		return nil, nil, err
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		return nil, nil, err
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER}), nil
}

// The suite on Apache Kafka is worth something only if the programs do refuse others.
func TestKafkaProgramsAnswerOnlyTheirCallers(t *testing.T) {
	onKafka(t, func(t *testing.T, b *kafkatest.Broker, _ []string) {
		registry, err := sandbox.New(sandbox.Config{NoBroker: true})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := registry.Close(); err != nil {
				t.Error(err)
			}
		})
		args := []string{"-t", "../../topology.yaml", "-b", strings.Join(b.Brokers(), ","), "-r", registry.RegistryURL()}
		for _, w := range []*worker{
			startProgram(t, "producer", append([]string{"serve"}, args...)...),
			startWorker(t, "processor", args...),
			startWorker(t, "projector", append([]string{"--data-dir", filepath.Join(t.TempDir(), "data")}, args...)...),
		} {
			if code, _, err := get(t.Context(), w.url+"/metrics"); err != nil || code != http.StatusOK {
				t.Errorf("%s: with a token, /metrics is %d, %v", w.name, code, err)
			}
			stranger := &http.Client{Transport: http.DefaultClient.Transport.(tokenTransport).base}
			resp, err := stranger.Get(w.url + "/metrics") //nolint:noctx // bounded by the test's own timeout
			if err != nil {
				t.Fatal(err)
			}
			_ = resp.Body.Close()
			if resp.StatusCode != http.StatusUnauthorized {
				t.Errorf("%s: without a token, /metrics is %s", w.name, resp.Status)
			}
			if resp, err := stranger.Get("http://" + strings.TrimPrefix(w.url, scheme) + "/livez"); err == nil { //nolint:noctx // bounded by the test's own timeout
				_ = resp.Body.Close()
				if resp.StatusCode == http.StatusOK {
					t.Errorf("%s answers without TLS", w.name)
				}
			}
			w.stop(t)
		}
	})
}
