package e2e

import (
	"bufio"
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"
)

// A command is a command in a document, with the output that the document shows.
type command struct {
	line int
	text string
	want []string
}

// commands returns the commands in the ```console blocks of a document: lines that begin
// with "$ ", each followed by its output.
func commands(t *testing.T, name string) (all []command) {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("../..", name))
	if err != nil {
		t.Fatal(err)
	}
	within := false
	for i, line := range strings.Split(string(text), "\n") {
		switch {
		case strings.HasPrefix(line, "```"):
			within = line == "```console"
		case within && strings.HasPrefix(line, "$ "):
			all = append(all, command{line: i + 1, text: line[2:]})
		case within && line != "" && len(all) > 0:
			c := &all[len(all)-1]
			c.want = append(c.want, line)
		}
	}
	return all
}

var number = regexp.MustCompile(`[0-9]+(\\\.[0-9]+)?`)

// matches reports whether the output of a command is as in the document. In the document,
// "..." matches any text, and numbers in lines with "per second" match any number.
func (c command) matches(output string) bool {
	got := strings.FieldsFunc(output, func(r rune) bool { return r == '\n' })
	if len(got) != len(c.want) {
		return false
	}
	for i, want := range c.want {
		pattern := regexp.QuoteMeta(want)
		if strings.Contains(want, "per second") {
			pattern = number.ReplaceAllString(pattern, `[0-9.]+`)
		}
		pattern = strings.ReplaceAll(pattern, `\.\.\.`, `.*`)
		if !regexp.MustCompile("^" + pattern + "$").MatchString(got[i]) {
			return false
		}
	}
	return true
}

var address = regexp.MustCompile(`127\.0\.0\.1:[0-9]+`)

// TestReadmeCommands runs the commands of the README next to the programs of `make run`
// and compares their output.
func TestReadmeCommands(t *testing.T) {
	all := commands(t, "README.md")
	if len(all) < 3 {
		t.Fatalf("README.md has %d commands, want at least 3", len(all))
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	up := exec.CommandContext(ctx, filepath.Join(bin, "sandbox"), "up", "--bin", bin, "-t", "../../topology.yaml")
	up.Cancel = func() error { return up.Process.Signal(syscall.SIGTERM) }
	up.WaitDelay = 30 * time.Second
	out, err := up.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := up.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := up.Process.Signal(os.Interrupt); err != nil {
			t.Error(err)
		}
		if err := up.Wait(); err != nil {
			t.Errorf("sandbox up: %v", err)
		}
	}()
	// Read the addresses: `sandbox up` uses other ports if the default ones are taken.
	at := map[string]string{}
	lines := bufio.NewScanner(out)
	for len(at) < 4 && lines.Scan() {
		for _, part := range []string{"Kafka", "schema registry", "processor", "projector"} {
			if strings.HasPrefix(strings.TrimSpace(lines.Text()), part+" ") {
				at[part] = address.FindString(lines.Text())
			}
		}
	}
	if len(at) < 4 {
		t.Fatalf("sandbox up printed only the addresses %v", at)
	}
	addresses := strings.NewReplacer("127.0.0.1:9101", at["processor"], "127.0.0.1:9102", at["projector"], "build/bin/", bin+string(filepath.Separator))
	for _, c := range all {
		run := func() (string, error) {
			cmd := exec.CommandContext(ctx, "sh", "-c", addresses.Replace(c.text))
			cmd.Dir = "../.."
			cmd.Env = append(os.Environ(), "MILLRACE_BROKERS="+at["Kafka"], "MILLRACE_REGISTRY=http://"+at["schema registry"], "MILLRACE_ADDRESS="+at["projector"])
			text, err := cmd.CombinedOutput()
			return string(text), err
		}
		got, err := run()
		// Repeat only queries: sent events may still be in flight, and a counter exists only
		// after its first increment.
		for strings.HasPrefix(c.text, "curl ") && (err != nil || !c.matches(got)) && ctx.Err() == nil {
			got, err = run()
		}
		if err != nil {
			t.Fatalf("README.md:%d: %s: %v\n%s", c.line, c.text, err, got)
		}
		if !c.matches(got) {
			t.Fatalf("README.md:%d: %s\nprinted\n%s\nbut the README shows\n%s", c.line, c.text, got, strings.Join(c.want, "\n"))
		}
	}
}
