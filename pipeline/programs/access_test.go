package programs_test

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"millrace/pipeline/access"
	"millrace/pipeline/cli"
	"millrace/pipeline/harness"
	"millrace/pipeline/producer"
	"millrace/pipeline/programs"
)

// tokenOf returns the token of the caller with a role.
func tokenOf(r access.Role) string { return "token-of-" + string(r) + "-4f1d9c7ab2" }

// writeCallers writes a list of callers, one for each role, and a file with the token of a
// worker.
func writeCallers(t *testing.T, dir string) (callers, worker string) {
	t.Helper()
	callers, worker = filepath.Join(dir, "callers.yaml"), filepath.Join(dir, "token")
	text := "tokens:\n"
	for _, r := range access.Roles() {
		text += fmt.Sprintf("  - {name: %s, roles: [%s], token: %s}\n", r, r, tokenOf(r))
	}
	for path, content := range map[string]string{callers: text, worker: tokenOf(access.Worker) + "\n"} {
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return callers, worker
}

// askAs sends a request as the caller with a role, and returns the status, the type and the
// detail of the answer's problem. The body of a stream is not read.
func askAs(t *testing.T, r access.Role, method, url string) (status int, typ, detail string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, url, http.NoBody)
	if err != nil {
		t.Fatal(err)
	}
	if r != access.Public {
		req.Header.Set("Authorization", "Bearer "+tokenOf(r))
	}
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	typ = resp.Header.Get("Content-Type")
	if resp.StatusCode >= 400 {
		text, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatal(err)
		}
		var p struct{ Detail string }
		_ = json.Unmarshal(text, &p) // the caller checks the type and the detail
		detail = p.Detail
	}
	return resp.StatusCode, typ, detail
}

// Each route of each program answers callers with its role, refuses others with 401 or 403,
// and says every error as a problem of RFC 9457.
func TestEveryRouteOfEveryProgramNeedsItsRole(t *testing.T) {
	dir := t.TempDir()
	file := clickTopology(t, dir, sumTopology)
	box := harness.Sandbox(t)
	callers, worker := writeCallers(t, dir)
	server := func(name string) []string {
		return []string{"-t", file, "--listen", "127.0.0.1:0", "--listen-file", filepath.Join(dir, name+".address"), "--auth-file", callers, "--pprof"}
	}
	all := map[string]*program{
		access.Processor: run(programs.Processor, box, append([]string{"run", "--sessions", "1", "--tap"}, server(access.Processor)...)...),
		access.Projector: run(programs.Projector, box, append([]string{"run", "--sessions", "1", "--data-dir", dir + "/data", "--token-file", worker}, server(access.Projector)...)...),
		access.Producer:  run(producer.Command, box, append([]string{"serve", "--topic", "in", "--key", "id"}, server(access.Producer)...)...),
	}
	for name, p := range all {
		awaitReady(t, filepath.Join(dir, name+".address"))
		defer p.stop(t)
		url := "http://" + awaitAddress(t, filepath.Join(dir, name+".address"))
		for _, route := range access.Routes() {
			if route.Program == "" || route.Program == name {
				checkRoute(t, name, url, route)
			}
		}
	}
}

// checkRoute requests a route as each caller, and as none.
func checkRoute(t *testing.T, program, url string, route access.Route) {
	t.Helper()
	method, path, _ := strings.Cut(route.Pattern, " ")
	path = strings.NewReplacer("{name}", "direct", "{id}", "none", "{version}", "1", "{partition}", "0").Replace(path)
	if strings.HasPrefix(path, "/internal/v1/feed") {
		path += "?start=wrong" // a good one is answered when something happens
	}
	for _, have := range append(access.Roles(), access.Public) {
		status, typ, detail := askAs(t, have, method, url+path)
		want := "passed"
		switch {
		case route.Role == access.Public || have == access.Admin || have == route.Role || have == access.Worker && route.Role == access.Read:
		case have == access.Public:
			want = "401"
		default:
			want = "403"
		}
		got := fmt.Sprint(status)
		if status != http.StatusUnauthorized && status != http.StatusForbidden {
			got = "passed"
		}
		if got != want || strings.Contains(detail, "does not exist") {
			t.Errorf("%s: %s as %q: %d %s, want %s", program, route.Pattern, have, status, detail, want)
		}
		if status >= 400 && (typ != "application/problem+json" || detail == "") {
			t.Errorf("%s: %s as %q: %d is not a problem: %s", program, route.Pattern, have, status, typ)
		}
	}
}

// Without callers, no program listens to other machines, and the error says what to do.
func TestProgramsRefuseToListenToOthersWithoutCallers(t *testing.T) {
	file := clickTopology(t, t.TempDir(), sumTopology)
	for name, args := range map[string][]string{
		"processor": {"run"}, "projector": {"run", "--data-dir", t.TempDir()}, "producer": {"serve", "--topic", "in", "--key", "id"},
	} {
		var output harness.Buffer
		env := &cli.Env{Stdout: &output, Stderr: &output}
		code := env.Main(append(args, "-t", file, "-b", "127.0.0.1:1", "--listen", "0.0.0.0:0"), binaries[name])
		if want := "give --auth-file with the callers, or --insecure-http if the network protects this address"; code != cli.ExitUsage || !strings.Contains(output.String(), want) {
			t.Errorf("%s: exit code %d, want %d and %q:\n%s", name, code, cli.ExitUsage, want, output.String())
		}
	}
}
