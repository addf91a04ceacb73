package programs_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kfake"

	"millrace/pipeline/access"
	"millrace/pipeline/harness"
	"millrace/pipeline/keyring/kms/kmstest"
	"millrace/pipeline/sandbox"
)

// canaryTopology uses secrets where a topology can have some: the key of a mask, and the URL
// and a header of a request.
const canaryTopology = `
name: t
encryption: {key_topic: t.keys, subject: {Person: id}}
topics:
  in: {partitions: 1, types: [Person], envelope: none, id: id, key: id}
  out: {partitions: 1, config: {retention.ms: "-1"}}
  dead: {partitions: 1}
  receipts: {partitions: 1}
pipelines:
  p:
    from: in
    to: out
    dead_letter: dead
    receipts: receipts
    stages:
      - mask: {fields: {note: hash}, key: "${MASK_KEY}"}
      - http: {url: "'http://svc:${SERVICE_PASSWORD}@SERVICE/' + id", headers: {Authorization: "'Bearer ${SERVICE_TOKEN}'"}, retries: 0}
projections:
  person: {from: out, key: id, state: Person, on: {Person: {set: {id: id, email: email}}}, snapshots: snapshots}
`

// canaries is a cluster, its services, and everything that the programs need to use them. Each
// secret is a canary: a text that no output may have.
type canaries struct {
	dir, topology     string
	brokers, registry string
	env               map[string]string // the environment of the programs
	certificate, key  string            // files of the HTTP servers
	callers, token    string            // files
	secrets           map[string]string // by name
	plain             string            // of a tagged field: only some outputs may have it
	bad               string            // of a tagged field of events that are refused
	client            *http.Client
}

// secret makes a canary.
func (c *canaries) secret(name string) string {
	text := fmt.Sprintf("canary-%s-%d", strings.ReplaceAll(name, " ", "-"), len(c.secrets))
	c.secrets[name] = text
	return text
}

func (c *canaries) file(t *testing.T, name, text string) (path string) {
	t.Helper()
	path = filepath.Join(c.dir, name)
	harness.Write(t, path, []byte(text))
	return path
}

func newCanaries(t *testing.T) *canaries {
	t.Helper()
	c := &canaries{dir: t.TempDir(), secrets: map[string]string{}, plain: "anna-of-canary@example.com", bad: "bert-of-canary@example.com"}
	password := c.secret("SASL password")
	cluster, err := kfake.NewCluster(kfake.NumBrokers(1), kfake.EnableSASL(), kfake.Superuser("PLAIN", "millrace", password))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(cluster.Close)
	c.brokers = cluster.ListenAddrs()[0]
	c.env = map[string]string{
		"MILLRACE_BROKERS": c.brokers, "MILLRACE_SASL_MECHANISM": "PLAIN", "MILLRACE_SASL_USERNAME": "millrace", "MILLRACE_SASL_PASSWORD": password,
		"MILLRACE_REGISTRY_USER": "millrace", "MILLRACE_REGISTRY_PASSWORD": c.secret("registry password"),
		"MASK_KEY": c.secret("key of a mask"), "SERVICE_PASSWORD": c.secret("password in a URL"), "SERVICE_TOKEN": c.secret("header of a request"),
	}
	c.addRegistry(t)
	service := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.HasSuffix(r.URL.Path, "/refused") {
			http.Error(w, "no", http.StatusTeapot)
			return
		}
		_, _ = io.WriteString(w, "{}")
	}))
	t.Cleanup(service.Close)
	c.writeTopology(t, strings.TrimPrefix(service.URL, "http://"))
	c.addKeys(t)
	c.addHTTP(t)
	return c
}

// addRegistry starts a registry that asks for a password.
func (c *canaries) addRegistry(t *testing.T) {
	t.Helper()
	box, err := sandbox.New(sandbox.Config{NoBroker: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = box.Close() })
	at, err := url.Parse(box.RegistryURL())
	if err != nil {
		t.Fatal(err)
	}
	proxy := httputil.NewSingleHostReverseProxy(at)
	front := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if _, password, _ := r.BasicAuth(); password != c.secrets["registry password"] {
			http.Error(w, `{"error_code": 401, "message": "who are you?"}`, http.StatusUnauthorized)
			return
		}
		proxy.ServeHTTP(w, r)
	}))
	t.Cleanup(front.Close)
	c.registry = front.URL
	c.env["MILLRACE_REGISTRY"] = front.URL
}

func (c *canaries) writeTopology(t *testing.T, service string) {
	t.Helper()
	if err := os.Mkdir(filepath.Join(c.dir, "schemas"), 0o700); err != nil {
		t.Fatal(err)
	}
	text := strings.ReplaceAll(canaryTopology, "SERVICE/", service+"/")
	c.topology = c.file(t, "topology.yaml", text)
	c.file(t, "broken.yaml", strings.NewReplacer("note: hash", "nothing: hash", "url: \"'", "url: \"+ '").Replace(text))
	c.file(t, "schemas/Person.avsc", `{"type": "record", "name": "Person", "fields": [{"name": "id", "type": "string", "default": ""},
		{"name": "note", "type": "string", "default": ""}, {"name": "email", "type": "string", "default": "", "millrace.pii": true}]}`)
	c.file(t, "topology.test.yaml", "cases:\n  - name: passes\n    pipeline: p\n    input: [{event: {id: u-1, note: n, email: e}}]\n    expect: []\n")
	c.file(t, "events.jsonl", fmt.Sprintf(`{"id":"u-1","note":"n","email":%q}`+"\n"+`{"id":"refused","note":"n","email":%[1]q}`+"\n", c.plain))
	c.file(t, "bad.jsonl", fmt.Sprintf(`{"id":"u-2","note":7,"email":%q}`+"\n"+`{"id":"u-2","email":{"a":%[1]q}}`+"\n"+`{"id":"u-2","emial":%[1]q}`+"\n"+`{"email":%[1]q`+"\n", c.bad))
}

// addKeys writes key-encryption keys: one in the file, the other wrapped by Vault.
func (c *canaries) addKeys(t *testing.T) {
	t.Helper()
	_, host := kmstest.Vault(t, c.secret("token of Vault"))
	c.env["VAULT_ADDR"], c.env["VAULT_TOKEN"] = os.Getenv("VAULT_ADDR"), os.Getenv("VAULT_TOKEN")
	c.secrets["key-encryption key"] = base64.StdEncoding.EncodeToString([]byte("canary-of-a-key-encryption-key-1"))
	c.secrets["key-encryption key of the environment"] = base64.StdEncoding.EncodeToString([]byte("canary-of-a-key-encryption-key-2"))
	code, line, errs := produce(nil, "", "new-kek", "--id", "vault", "--kms", "hcvault://"+host+"/transit/keys/k")
	if code != 0 {
		t.Fatal(errs)
	}
	c.file(t, "kek", "file "+c.secrets["key-encryption key"]+"\n"+line)
	c.file(t, "kek-bad", "file "+c.secrets["key-encryption key"]+"x\n")
	c.file(t, "kek-swapped", c.secrets["key-encryption key"]+" file\n")
}

// addHTTP writes the callers of the HTTP servers, a token for each role, and a certificate.
func (c *canaries) addHTTP(t *testing.T) {
	t.Helper()
	text := "tokens:\n"
	for _, r := range access.Roles() {
		text += fmt.Sprintf("  - {name: %s, roles: [%s], token: %s}\n", r, r, c.secret("token of "+string(r)))
	}
	c.callers = c.file(t, "callers.yaml", text)
	c.token = c.file(t, "token", c.secrets["token of admin"]+"\n")
	c.file(t, "token-wrong", c.secret("wrong token")+"\n")
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	cert := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, IsCA: true, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, cert, cert, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	pkcs, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	c.certificate = c.file(t, "cert.pem", string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})))
	secret := string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: pkcs}))
	c.key = c.file(t, "cert.key", secret)
	c.secrets["private key"] = strings.Split(secret, "\n")[2] // the first line has the type only
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
	c.client = &http.Client{Transport: &http.Transport{DisableKeepAlives: true, TLSClientConfig: &tls.Config{RootCAs: pool}}}
}

// check reports the secrets that an output has. shows means that plaintext is allowed.
func (c *canaries) check(t *testing.T, what, output string, shows bool) {
	t.Helper()
	found := func(name, secret string) {
		if i := strings.Index(output, secret); i >= 0 {
			t.Errorf("%s shows the %s: ...%.300s", what, name, output[max(0, i-150):])
		}
	}
	for name, secret := range c.secrets {
		found(name, secret)
		found(name+" in base64", base64.StdEncoding.EncodeToString([]byte(secret)))
	}
	found("plaintext of a refused event", c.bad)
	if !shows {
		found("plaintext of a tagged field", c.plain)
	}
}

// with returns the environment with other values, given as pairs. "" removes a variable.
func (c *canaries) with(pairs ...string) func(string) (string, bool) {
	return func(name string) (string, bool) {
		for i := 0; i < len(pairs); i += 2 {
			if pairs[i] == name {
				return pairs[i+1], pairs[i+1] != ""
			}
		}
		v, ok := c.env[name]
		return v, ok
	}
}
