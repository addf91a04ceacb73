package programs_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"maps"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/spf13/cobra"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/sasl/plain"

	"millrace/pipeline/cli"
	"millrace/pipeline/harness"
	"millrace/pipeline/keyring/kms"
)

// invocation is a use of a command with secrets. An argument @NAME is the address of a
// server, and =NAME a file of the test.
type invocation struct {
	args  []string
	env   []string // pairs
	shows bool     // stdout may show plaintext of tagged fields, as documented
	feed  bool     // it shows events that arrive from now on, so some are sent
	end   string   // text after which a command that does not end is stopped
}

// canaryServers are the commands that do not end; each is started with each level.
var canaryServers = map[string][]string{
	"processor run":  {"-t", "=topology.yaml", "--sessions", "1", "--tap", "--instance", "w"},
	"projector run":  {"-t", "=topology.yaml", "--sessions", "1", "--kek-file", "=kek", "--token-file", "=token", "--instance", "w"},
	"producer serve": {"-t", "=topology.yaml", "--topic", "in", "--kek-file", "=kek"},
}

var ask = []string{"--address", "@projector", "--server-ca", "=cert.pem", "--token-file", "=token"}

// canaryCommands has every command of the four programs, but for the servers.
var canaryCommands = map[string][]invocation{
	"producer send": {
		{args: []string{"-t", "=topology.yaml", "--topic", "in", "--kek-file", "=kek", "=events.jsonl"}},
		{args: []string{"-t", "=topology.yaml", "--topic", "in", "--kek-file", "=kek", "--rejects", "=rejects", "=bad.jsonl"}},
		{args: []string{"-t", "=topology.yaml", "--topic", "in", "--dry-run", "=bad.jsonl"}},
		{args: []string{"-t", "=topology.yaml", "--topic", "in", "=events.jsonl"}, env: []string{"MILLRACE_KEK", "file ENVIRONMENT-KEY\n"}},
		{args: []string{"-t", "=topology.yaml", "--topic", "in", "--kek-file", "=kek-bad", "=events.jsonl"}},
		{args: []string{"-t", "=topology.yaml", "--topic", "in", "--kek-file", "=kek-swapped", "=events.jsonl"}},
		{args: []string{"-t", "=topology.yaml", "--topic", "in", "--kek-file", "=kek", "-X", "dump", "=events.jsonl"}},
		{args: []string{"-t", "=topology.yaml", "--topic", "in", "--kek-file", "=kek", "--command-config", "=client.properties", "-X", "dump", "=events.jsonl"}, env: []string{"MILLRACE_SASL_PASSWORD", ""}},
		{args: []string{"-t", "=topology.yaml", "--topic", "in", "--kek-file", "=kek", "--command-config", "=client.properties", "=events.jsonl"}, env: []string{"MILLRACE_SASL_PASSWORD", ""}},
		{args: []string{"-t", "=topology.yaml", "--topic", "in", "--kek-file", "=kek", "-X", "sasl.password=SASL-PASSWORD", "=events.jsonl"}},
		{args: []string{"-t", "=topology.yaml", "--topic", "in", "--kek-file", "=kek", "-r", "http://u:REGISTRY-PASSWORD@127.0.0.1:1", "=events.jsonl"}},
		{args: []string{"-t", "=topology.yaml", "--topic", "in", "--kek-file", "=kek", "-b", "u:SASL-PASSWORD@127.0.0.1:1", "=events.jsonl"}},
		{args: []string{"-t", "=broken.yaml", "=events.jsonl"}},
	},
	"producer generate": {{args: []string{"-t", "=topology.yaml", "--topic", "in", "--events", "3", "--kek-file", "=kek"}}},
	"producer redrive":  {{args: []string{"-t", "=topology.yaml", "--dry-run"}}, {args: []string{"-t", "=topology.yaml", "--max", "1", "--rate", "1000"}}},
	"producer rewrap":   {{args: []string{"-t", "=topology.yaml", "--kek-file", "=kek"}}, {args: []string{"-t", "=topology.yaml", "--kek-file", "=kek", "--dry-run", "--json"}}},
	"producer new-kek":  {{args: []string{"--id", "a", "--kms", "hcvault://@vault/transit/keys/k"}}, {args: []string{"--id", "a", "--kms", "hcvault://u:VAULT-TOKEN@127.0.0.1/transit/keys/k"}}},

	"processor apply":       {{args: []string{"-t", "=topology.yaml"}}},
	"processor plan":        {{args: []string{"-t", "=topology.yaml"}}, {args: []string{"-t", "=topology.yaml", "--json"}}},
	"processor dry-run":     {{args: []string{"-t", "=topology.yaml", "--offset", "start"}}, {args: []string{"-t", "=topology.yaml", "--offset", "start", "--call-services", "--json"}}},
	"processor verify":      {{args: []string{"-t", "=topology.yaml", "--call-services"}}, {args: []string{"-t", "=topology.yaml", "--json"}}},
	"processor explain":     {{args: []string{"-t", "=topology.yaml"}}, {args: []string{"-t", "=topology.yaml", "--json"}}, {args: []string{"-t", "=topology.yaml", "--acls"}}, {args: []string{"-t", "=topology.yaml", "--subjects"}}},
	"processor lint":        {{args: []string{"=topology.yaml"}}, {args: []string{"=broken.yaml"}}},
	"processor graph":       {{args: []string{"-t", "=topology.yaml"}}, {args: []string{"-t", "=topology.yaml", "--format", "svg"}}},
	"processor test":        {{args: []string{"-t", "=topology.yaml", "-v", "=topology.test.yaml"}}},
	"processor tap":         {{args: []string{"--listen", "@processor", "--server-ca", "=cert.pem", "--token-file", "=token", "-n", "2", "--json"}, feed: true}, {args: []string{"--listen", "@processor", "--server-ca", "=cert.pem", "--token-file", "=token-wrong"}}},
	"processor healthcheck": {{args: []string{"--listen", "@processor", "--tls-cert", "=cert.pem"}}},
	"processor stages":      {{args: nil}},
	"processor functions":   {{args: nil}},
	"processor init":        {{args: []string{"=fresh"}}},

	"projector get": {
		{args: slices.Concat([]string{"person", "u-1"}, ask), shows: true},
		{args: []string{"person", "u-1", "--address", "@projector", "--server-ca", "=cert.pem", "--token-file", "=token-wrong"}},
		{args: []string{"person", "u-1", "--address", "https://u:ADMIN-TOKEN@127.0.0.1:1"}},
		{args: []string{"person", "u-1", "--address", "@projector", "--server-ca", "=cert.pem"}, shows: true}, // MILLRACE_TOKEN
		{args: []string{"person", "u-1", "--address", "@projector", "--server-ca", "=cert.pem", "--client-cert", "=cert.pem", "--client-key", "=cert.key"}, shows: true},
		{args: []string{"person", "u-1", "--address", "@projector", "--server-ca", "=cert.pem", "--client-cert", "=cert.pem", "--client-key", "=token"}},
		{args: []string{"person", "u-1", "--address", "@projector", "--server-ca", "=cert.key"}},
		{args: []string{"person", "u-1", "--address", "@projector", "--server-ca", "=cert.pem", "--token-file", "=callers.yaml"}},
	},
	"projector list":          {{args: slices.Concat([]string{"person"}, ask), shows: true}, {args: ask}},
	"projector history":       {{args: slices.Concat([]string{"person", "u-1"}, ask), shows: true}},
	"projector why":           {{args: slices.Concat([]string{"person", "u-1"}, ask), shows: true}},
	"projector diff-versions": {{args: slices.Concat([]string{"person", "u-1"}, ask), shows: true}},
	"projector event":         {{args: slices.Concat([]string{"u-1"}, ask), shows: true}},
	"projector events":        {{args: slices.Concat([]string{"Person"}, ask), shows: true}},
	"projector watch":         {{args: slices.Concat([]string{"person", "--from", "beginning", "-n", "1"}, ask), shows: true, end: "email"}},
	"projector blocked":       {{args: slices.Concat([]string{"person"}, ask)}},
	"projector release":       {{args: slices.Concat([]string{"person", "u-1"}, ask)}},
	"projector healthcheck":   {{args: []string{"--listen", "@projector", "--tls-cert", "=cert.pem"}}},
	"projector status":        {{args: []string{"-t", "=topology.yaml", "--server-ca", "=cert.pem", "--token-file", "=token"}}},
	"projector rebuild":       {{args: []string{"person", "-t", "=topology.yaml", "--server-ca", "=cert.pem", "--token-file", "=token"}}},
	"projector diff":          {{args: []string{"person", "-t", "=topology.yaml", "--server-ca", "=cert.pem", "--token-file", "=token"}}},
	"projector promote":       {{args: []string{"person", "-t", "=topology.yaml", "--server-ca", "=cert.pem", "--token-file", "=token"}}},
	"projector rollback":      {{args: []string{"person", "-t", "=topology.yaml", "--server-ca", "=cert.pem", "--token-file", "=token"}}},
	"projector retire":        {{args: []string{"person", "--version", "7", "-t", "=topology.yaml", "--server-ca", "=cert.pem", "--token-file", "=token"}}},
	"projector forget":        {{args: []string{"person", "u-1", "--dry-run", "-t", "=topology.yaml", "--server-ca", "=cert.pem", "--token-file", "=token"}}, {args: []string{"--subject", "u-1", "--dry-run", "-t", "=topology.yaml"}}},

	"sandbox run": {{args: []string{"--kafka-listen", "127.0.0.1:0", "--registry-listen", "127.0.0.1:0"}, end: "Ctrl-C"}},
	// They start the other programs, which are tested here, without the variables of another cluster.
	"sandbox up":   {{args: []string{"-t", "=broken.yaml", "--bin", "=bin"}}},
	"sandbox demo": {{args: []string{"-t", "=broken.yaml", "--bin", "=bin", "--count", "1"}}},
}

// resolve returns the arguments with addresses, files and secrets.
func (c *canaries) resolve(args []string, servers map[string]string) (out []string) {
	named := strings.NewReplacer(
		"SASL-PASSWORD", c.secrets["SASL password"], "REGISTRY-PASSWORD", c.secrets["registry password"], "VAULT-TOKEN", c.secrets["token of Vault"],
		"ADMIN-TOKEN", c.secrets["token of admin"], "ENVIRONMENT-KEY", c.secrets["key-encryption key of the environment"],
	)
	for _, a := range args {
		if file, ok := strings.CutPrefix(a, "="); ok {
			a = filepath.Join(c.dir, file)
		}
		for name, address := range servers {
			a = strings.ReplaceAll(a, "@"+name, address)
		}
		out = append(out, named.Replace(a))
	}
	return out
}

// start starts a command in this process.
func (c *canaries) start(path string, args, env []string) *program {
	name, sub, _ := strings.Cut(path, " ")
	p := &program{signals: make(chan os.Signal, 2), exit: make(chan int, 1)}
	e := &cli.Env{
		Stdin: strings.NewReader(""), Stdout: &p.output, Stderr: &p.errors, Now: time.Now, Exit: func(int) {}, KMS: kms.Open, LookupEnv: c.with(c.resolve(env, nil)...),
		Notify: func() (<-chan os.Signal, func()) { return p.signals, func() {} },
	}
	go func() { p.exit <- e.Main(append(strings.Fields(sub), args...), binaries[name]) }()
	return p
}

// finish waits for the end of a command. It stops one whose output has the text end.
func (p *program) finish(t *testing.T, what, end string) {
	t.Helper()
	stopped := false
	if !until(t, func() bool {
		select {
		case code := <-p.exit:
			p.exit <- code
			return true
		default:
		}
		if end != "" && !stopped && strings.Contains(p.output.String()+p.errors.String(), end) {
			p.signals <- syscall.SIGTERM
			stopped = true
		}
		return false
	}) {
		t.Errorf("%s does not end:\n%.2000s%.2000s", what, p.output.String(), p.errors.String())
		p.signals <- syscall.SIGTERM
	}
	<-p.exit
}

// commandPaths returns the commands of a program, as "PROGRAM COMMAND".
func commandPaths(cmd *cobra.Command) (paths []string) {
	for _, sub := range cmd.Commands() {
		if sub.HasSubCommands() {
			paths = append(paths, commandPaths(sub)...)
			continue
		}
		paths = append(paths, sub.CommandPath())
	}
	return paths
}

func TestNoOutputShowsASecret(t *testing.T) {
	c := newCanaries(t)
	c.file(t, "client.properties", "sasl.mechanism=PLAIN\nsasl.jaas.config=org.apache.kafka.common.security.plain.PlainLoginModule required username=\"millrace\" password=\""+c.secrets["SASL password"]+"\";\n")
	listed := append(slices.Collect(maps.Keys(canaryCommands)), slices.Collect(maps.Keys(canaryServers))...)
	var have []string
	levels := map[string]bool{} // commands with --log-level
	for _, program := range binaries {
		root := program(&cli.Env{})
		have = append(have, commandPaths(root)...)
		for _, cmd := range root.Commands() {
			levels[cmd.CommandPath()] = cmd.Flags().Lookup("log-level") != nil
		}
	}
	slices.Sort(have)
	slices.Sort(listed)
	if !slices.Equal(have, listed) {
		t.Fatalf("the commands are\n%v\nbut the test lists\n%v", have, listed)
	}
	t.Setenv("MILLRACE_TOKEN", c.secrets["token of admin"]) // --token-file is stronger
	t.Chdir(c.dir)                                          // generate writes its rejects there
	for i, level := range []string{"trace", "debug", "info", "warn", "error"} {
		c.pass(t, i, level, levels)
	}
	c.checkTopics(t)
}

// pass runs everything with a level of the log.
func (c *canaries) pass(t *testing.T, i int, level string, levels map[string]bool) {
	t.Helper()
	running, addresses := map[string]*program{}, map[string]string{"vault": strings.TrimPrefix(c.env["VAULT_ADDR"], "http://")}
	for path, args := range canaryServers {
		name, _, _ := strings.Cut(path, " ")
		file := filepath.Join(c.dir, fmt.Sprint(name, i))
		flags := append(c.resolve(args, nil), "--log-level", level, "--listen", "127.0.0.1:0", "--listen-file", file, "--auth-file", c.callers, "--tls-cert", c.certificate, "--tls-key", c.key, "--pprof")
		if name == "projector" {
			flags = append(flags, "--data-dir", filepath.Join(c.dir, "data"))
		}
		running[name] = c.start(path, flags, nil)
		defer func() { running[name].finish(t, path, "") }()
		addresses[name] = awaitAddress(t, file)
	}
	for name := range running {
		if !until(t, func() bool {
			status, _ := c.ask(t, "GET", "https://"+addresses[name]+"/readyz", "", "")
			return status == http.StatusOK
		}) {
			t.Errorf("%s is not ready:\n%s", name, running[name].errors.String())
		}
	}
	c.run(t, "producer send", canaryCommands["producer send"][0], level, true, addresses)
	if !until(t, func() bool {
		_, body := c.ask(t, "GET", "https://"+addresses["projector"]+"/v1/projections/person/u-1", c.secrets["token of admin"], "")
		return strings.Contains(body, c.plain)
	}) {
		t.Error("the projector does not show the plaintext: this test would find nothing")
	}
	for _, path := range slices.Sorted(maps.Keys(canaryCommands)) {
		for _, v := range canaryCommands[path] {
			c.run(t, path, v, level, levels[path], addresses)
		}
	}
	for name := range running {
		c.scrape(t, name, "https://"+addresses[name])
	}
	for name, p := range running {
		p.signals <- syscall.SIGTERM
		p.exit <- <-p.exit
		c.check(t, name+" at "+level, p.output.String()+p.errors.String(), false)
		if level == "trace" && !strings.Contains(p.errors.String(), "SASL") && !strings.Contains(p.errors.String(), "sasl") {
			t.Errorf("the log of %s at trace has nothing of SASL: is it complete?", name)
		}
	}
}

// run runs a command to its end.
func (c *canaries) run(t *testing.T, path string, v invocation, level string, hasLevel bool, servers map[string]string) {
	t.Helper()
	args := c.resolve(v.args, servers)
	if hasLevel {
		args = append(args, "--log-level", level)
	}
	what := fmt.Sprintf("%s %v", path, v.args)
	p := c.start(path, args, v.env)
	if v.feed {
		until(t, func() bool {
			select {
			case code := <-p.exit:
				p.exit <- code
				return true
			default:
				c.run(t, "producer send", canaryCommands["producer send"][0], level, true, servers)
				return false
			}
		})
	}
	p.finish(t, what, v.end)
	c.check(t, what+" (stdout)", p.output.String(), v.shows)
	c.check(t, what+" (stderr)", p.errors.String(), false)
	if p.output.String()+p.errors.String() == "" && path != "processor healthcheck" && path != "projector healthcheck" {
		t.Errorf("%s printed nothing: is there something to check?", what)
	}
}

// ask sends a request and returns the answer.
func (c *canaries) ask(t *testing.T, method, url, token, body string) (status int, text string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, url, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	if token != "" {
		req.Header.Set("Authorization", "Bearer "+token)
	}
	if body != "" {
		req.Header.Set("Content-Type", "application/json")
	}
	resp, err := c.client.Do(req)
	if err != nil {
		return 0, err.Error()
	}
	defer resp.Body.Close()
	all, err := io.ReadAll(resp.Body)
	if err != nil {
		return 0, err.Error()
	}
	return resp.StatusCode, string(all)
}

// scrape checks the answers of a server, and those to wrong requests.
func (c *canaries) scrape(t *testing.T, name, url string) {
	t.Helper()
	admin := c.secrets["token of admin"]
	for _, path := range []string{
		"/livez", "/readyz?verbose", "/startupz?verbose", "/metrics", "/version", "/none", "/debug/pprof/", "/debug/pprof/cmdline", "/debug/pprof/goroutine?debug=2", "/debug/pprof/goroutine?debug=1",
		"/debug/pprof/heap?debug=1", "/debug/pprof/allocs?debug=1", "/debug/pprof/threadcreate?debug=1", "/debug/pprof/symbol", "/v1/projections/none", "/v1/projections/person/none", "/v1/projections?none=1",
	} {
		for _, token := range []string{admin, c.secrets["token of read"], c.secrets["wrong token"], ""} {
			status, body := c.ask(t, "GET", url+path, token, "")
			if status == 0 {
				t.Errorf("%s: no answer to GET %s: %s", name, path, body)
			}
			c.check(t, name+": GET "+path, body, false)
		}
	}
	if name != "producer" {
		return
	}
	bad, err := os.ReadFile(filepath.Join(c.dir, "bad.jsonl"))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(bad)) {
		status, body := c.ask(t, "POST", url+"/v1/events", admin, line)
		if status != http.StatusBadRequest {
			t.Errorf("the bad event %s is answered with %d %s", line, status, body)
		}
		c.check(t, "producer: POST /v1/events", body, false)
	}
}

// checkTopics checks all records: events, dead letters, receipts, keys, snapshots, and the
// definitions on the control topic.
func (c *canaries) checkTopics(t *testing.T) {
	t.Helper()
	client, err := kgo.NewClient(kgo.SeedBrokers(c.brokers), kgo.SASL(plain.Auth{User: "millrace", Pass: c.secrets["SASL password"]}.AsMechanism()),
		kgo.ConsumeRegex(), kgo.ConsumeTopics(".*"), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()))
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	seen := map[string]int{}
	wanted := []string{"in", "out", "dead", "receipts", "t.keys", "snapshots", "t-control"}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	for !slices.ContainsFunc(wanted, func(topic string) bool { return seen[topic] == 0 }) == false {
		fetches := client.PollFetches(ctx)
		if ctx.Err() != nil {
			t.Fatalf("some topics have no records: %v", seen)
		}
		fetches.EachRecord(func(r *kgo.Record) {
			seen[r.Topic]++
			text := string(r.Key) + " " + string(r.Value)
			for _, h := range r.Headers {
				text += " " + h.Key + "=" + string(h.Value)
			}
			c.check(t, fmt.Sprintf("topic %s, offset %d", r.Topic, r.Offset), text, false)
		})
	}
}

// The failures of connections and credentials are explained without the secrets.
func TestNoFailureShowsASecret(t *testing.T) {
	c := newCanaries(t)
	wrong := c.secret("wrong password")
	oauth := func(name, endpoint string) string {
		return c.file(t, name, "security.protocol=SASL_PLAINTEXT\nsasl.mechanism=OAUTHBEARER\nsasl.oauthbearer.token.endpoint.url="+endpoint+"\nsasl.oauthbearer.client.credentials.client.id=u\nsasl.oauthbearer.client.credentials.client.secret="+wrong+"\n")
	}
	withOAuth := []string{"MILLRACE_SASL_MECHANISM", "", "MILLRACE_SASL_USERNAME", "", "MILLRACE_SASL_PASSWORD", "", "MILLRACE_COMMAND_CONFIG"}
	for what, v := range map[string]struct {
		env []string
		end string
	}{
		"wrong SASL password":     {[]string{"MILLRACE_SASL_PASSWORD", wrong}, "SASL"},
		"unreachable brokers":     {[]string{"MILLRACE_BROKERS", "127.0.0.1:1"}, "refused"},
		"wrong registry password": {[]string{"MILLRACE_REGISTRY_PASSWORD", wrong}, "who are you?"},
		"unreachable registry":    {[]string{"MILLRACE_REGISTRY", "http://127.0.0.1:1"}, "127.0.0.1:1"},
		"brokers with a password": {[]string{"MILLRACE_BROKERS", "u:" + wrong + "@127.0.0.1:1"}, "127.0.0.1:1"},
		"brokers with a scheme":   {[]string{"MILLRACE_BROKERS", "kafka://u:" + wrong + "@127.0.0.1:1"}, "127.0.0.1:1"},
		"brokers on a network":    {[]string{"MILLRACE_BROKERS", "u:" + wrong + "@kafka.example:1"}, "kafka.example:1"},
		"refused OAuth":           {append(slices.Clone(withOAuth), oauth("oauth", "http://127.0.0.1:1")), "OAUTHBEARER"},
		"OAuth URL with password": {append(slices.Clone(withOAuth), oauth("oauth-user", "http://u:"+wrong+"@127.0.0.1:1")), ""},
		"a key that is no PEM":    {[]string{"MILLRACE_SSL_KEY_PEM", wrong, "MILLRACE_SSL_CERTIFICATE_PEM", wrong}, ""},
		"two registry secrets":    {[]string{"MILLRACE_REGISTRY_TOKEN", wrong}, ""},
		"two key lists":           {[]string{"MILLRACE_KEK", "file " + wrong}, "listening"},
		"a mechanism of its own":  {[]string{"MILLRACE_SASL_MECHANISM", "SCRAM-SHA-512"}, "SASL"},
	} {
		seen := v.end == ""
		for path, args := range map[string][]string{
			"producer send":   {"--topic", "in", "--kek-file", "=kek", "=events.jsonl"},
			"producer rewrap": {"--kek-file", "=kek"},
			"processor run":   {"--listen", "127.0.0.1:0", "--sessions", "1"},
			"processor plan":  nil,
			"projector run":   {"--listen", "127.0.0.1:0", "--sessions", "1", "--kek-file", "=kek", "--data-dir", "=failing"},
		} {
			p := c.start(path, append(c.resolve(args, nil), "-t", c.topology, "--log-level", "trace"), v.env)
			p.finish(t, what+": "+path, v.end)
			output := p.output.String() + p.errors.String()
			c.check(t, what+": "+path, output, false)
			if output == "" {
				t.Errorf("%s: %s printed nothing", what, path)
			}
			seen = seen || strings.Contains(output, v.end)
		}
		if !seen {
			t.Errorf("%s: no output has %q: did it fail as it should?", what, v.end)
		}
	}
}

// A process that gets SIGQUIT dumps its goroutines. The dump has no secret.
func TestNoDumpOfAProcessShowsASecret(t *testing.T) {
	c := newCanaries(t)
	bin := programDir(t)
	for path, args := range canaryServers {
		name, sub, _ := strings.Cut(path, " ")
		file := filepath.Join(c.dir, name)
		flags := append(c.resolve(args, nil), "--listen", "127.0.0.1:0", "--listen-file", file, "--auth-file", c.callers, "--log-level", "trace")
		if name != "processor" { // without KMS, as these binaries have no clients
			flags = append(flags, "--kek-file", c.file(t, "kek-plain", "file "+c.secrets["key-encryption key"]+"\n"))
		}
		if name == "projector" {
			flags = append(flags, "--data-dir", filepath.Join(c.dir, "data"))
		}
		cmd := exec.CommandContext(t.Context(), filepath.Join(bin, name), append([]string{sub}, flags...)...)
		cmd.Env = os.Environ()
		for k, v := range c.env {
			cmd.Env = append(cmd.Env, k+"="+v)
		}
		var output harness.Buffer
		cmd.Stdout, cmd.Stderr = &output, &output
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		address := awaitAddress(t, file)
		if !until(t, func() bool { status, _ := get("http://" + address + "/readyz"); return status == http.StatusOK }) {
			t.Errorf("%s is not ready:\n%s", path, output.String())
		}
		if err := cmd.Process.Signal(syscall.SIGQUIT); err != nil {
			t.Fatal(err)
		}
		if err := cmd.Wait(); err == nil || !bytes.Contains([]byte(output.String()), []byte("goroutine ")) {
			t.Errorf("%s prints no dump: %v\n%s", path, err, output.String())
		}
		c.check(t, path, output.String(), false)
	}
}
