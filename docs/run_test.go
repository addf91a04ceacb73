// Package docs_test runs the commands of the documents, and compares their output with the
// output that the documents show.
//
// Start at [step], which describes the blocks of a document, and [TestCommandsOfDocuments].
package docs_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
	"github.com/spf13/cobra"

	"millrace/pipeline/cli"
	"millrace/pipeline/producer"
	"millrace/pipeline/programs"
	"millrace/pipeline/sandbox/demo"
)

// binaries are the programs that this test's binary is when it is called by their names.
var binaries = map[string]func(*cli.Env) *cobra.Command{
	"producer":  producer.Command,
	"processor": programs.Processor,
	"projector": programs.Projector,
	"sandbox":   demo.Command,
}

func TestMain(m *testing.M) {
	commands := map[string]func(){}
	for name, program := range binaries {
		commands[name] = func() { os.Exit(cli.NewEnv().Main(os.Args[1:], program)) }
	}
	testscript.Main(m, commands)
}

type testedDocument struct {
	document string // its path below the root of the repository
	empty    bool   // whether the reader starts in an empty folder, and not in the repository
	least    int    // the number of steps, at least
}

// tested are the documents with commands.
var tested = []testedDocument{
	{"README.md", false, 4},
	{"docs/getting-started.md", true, 10},
	{"docs/http.md", false, 10},
	{"docs/asking.md", false, 15},
	{"docs/operations.md", false, 4},
	{"docs/projector-operations.md", false, 8},
	{"docs/encryption.md", false, 8},
	{"docs/change-data.md", false, 4},
}

// occupy listens at the default addresses, so that `make run` and the programs of other
// tests use free ports. Otherwise two of them could choose the same default port. It closes
// every connection, for clients that connect there by mistake.
func occupy(t *testing.T) {
	t.Helper()
	for _, at := range []string{kafkaAddress, registryAddress, processorAddress, projectorAddress} {
		l, err := net.Listen("tcp", at)
		if err != nil {
			continue // taken already
		}
		var served sync.WaitGroup
		served.Go(func() {
			for {
				conn, err := l.Accept()
				if err != nil {
					return // closed
				}
				_ = conn.Close()
			}
		})
		t.Cleanup(func() {
			if err := l.Close(); err != nil {
				t.Error(err)
			}
			served.Wait()
		})
	}
}

func TestCommandsOfDocuments(t *testing.T) {
	occupy(t)
	for _, c := range tested {
		t.Run(strings.TrimPrefix(c.document, "docs/"), func(t *testing.T) {
			all := readSteps(t, c.document)
			if len(all) < c.least {
				t.Fatalf("%d steps, want at least %d", len(all), c.least)
			}
			r := newReader(t, c.document, c.empty)
			for _, s := range all {
				r.do(s)
			}
			for _, name := range slices.Backward(r.opened) { // the sandbox last
				r.stop(name)
			}
		})
	}
}

// A document with commands is tested, unless all of them are marked as examples.
func TestEveryDocumentWithCommandsIsTested(t *testing.T) {
	for _, name := range documents(t) {
		document := strings.TrimPrefix(filepath.ToSlash(filepath.Join("docs", name)), "./")
		if len(readSteps(t, document)) == 0 {
			continue
		}
		if !slices.ContainsFunc(tested, func(c testedDocument) bool { return c.document == document }) {
			t.Errorf("%s has commands, but no test runs them", document)
		}
	}
}

// The addresses that the documents name. The programs of a test listen at others.
const (
	kafkaAddress     = "127.0.0.1:9092"
	registryAddress  = "127.0.0.1:8085"
	processorAddress = "127.0.0.1:9101"
	projectorAddress = "127.0.0.1:9102"
	serveAddress     = "127.0.0.1:9103"
)

// A reader does what a document describes.
type reader struct {
	t        *testing.T
	ctx      context.Context
	document string
	dir      string // the current directory of the first terminal
	scratch  string // for files that are not the reader's
	env      []string
	at       map[string]string // address in the document -> address in the test

	terminals map[string]*terminal // the programs that run, by terminal
	opened    []string             // the names of terminals, in the order of their first use
	started   int                  // programs so far
}

// A terminal runs a program in the background.
type terminal struct {
	cmd  *exec.Cmd
	done chan error
	out  output
}

// output is written by a program while the test reads it.
type output struct {
	mu   sync.Mutex
	text []byte
}

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.text = append(o.text, p...)
	return len(p), nil
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return string(o.text)
}

// newReader returns a reader in an empty folder, or in one that looks like the repository
// after `make build`. What the reader writes there does not reach the repository.
func newReader(t *testing.T, document string, empty bool) *reader {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	t.Cleanup(cancel)
	r := &reader{t: t, ctx: ctx, document: document, dir: t.TempDir(), scratch: t.TempDir(), at: map[string]string{}, terminals: map[string]*terminal{}}
	for _, v := range os.Environ() {
		if !strings.HasPrefix(v, "MILLRACE_") {
			r.env = append(r.env, v)
		}
	}
	r.env = append(r.env, "MILLRACE_KAFKA_LISTEN=127.0.0.1:0", "MILLRACE_REGISTRY_LISTEN=127.0.0.1:0")
	t.Cleanup(r.kill)
	if !empty {
		r.linkRepository()
	}
	return r
}

// linkRepository fills the current directory with copies of the files that a reader edits,
// links to others, and links to the programs in build/bin.
func (r *reader) linkRepository() {
	r.t.Helper()
	root, err := filepath.Abs("..")
	if err != nil {
		r.t.Fatal(err)
	}
	bin := filepath.Join(r.dir, "build", "bin")
	if err := os.MkdirAll(bin, 0o755); err != nil {
		r.t.Fatal(err)
	}
	links := map[string]string{}
	for name := range binaries {
		program, err := exec.LookPath(name)
		if err != nil {
			r.t.Fatal(err)
		}
		links[filepath.Join(bin, name)] = program
	}
	for _, name := range []string{"Makefile", "docs", "examples"} {
		links[filepath.Join(r.dir, name)] = filepath.Join(root, name)
	}
	if err := os.CopyFS(filepath.Join(r.dir, "schemas"), os.DirFS(filepath.Join(root, "schemas"))); err != nil {
		r.t.Fatal(err)
	}
	for _, name := range []string{"topology.yaml", "topology.test.yaml"} {
		text, err := os.ReadFile(filepath.Join(root, name))
		if err == nil {
			err = os.WriteFile(filepath.Join(r.dir, name), text, 0o600)
		}
		if err != nil {
			r.t.Fatal(err)
		}
	}
	for link, target := range links {
		if err := os.Symlink(target, link); err != nil {
			r.t.Fatal(err)
		}
	}
}

// kill ends the programs that a failed test left running.
func (r *reader) kill() {
	for _, term := range r.terminals {
		if err := term.cmd.Process.Kill(); err == nil {
			r.t.Logf("killed: %v", <-term.done)
		}
		if r.t.Failed() {
			r.t.Logf("%s printed\n%s", term.cmd.Args[2], term.out.String())
		}
	}
}

// fatalf ends the test with an error at a line of the document.
func (r *reader) fatalf(s *step, format string, args ...any) {
	r.t.Helper()
	r.t.Fatalf("%s:%d: %s", r.document, s.line, fmt.Sprintf(format, args...))
}

func (r *reader) do(s *step) {
	r.t.Helper()
	switch {
	case s.file != "":
		r.edit(s)
	case s.terminal != "":
		r.stop(s.terminal)
		r.start(s)
	default:
		r.run(s)
	}
}

// edit changes a file as a diff shows it.
func (r *reader) edit(s *step) {
	r.t.Helper()
	name := filepath.Join(r.dir, filepath.FromSlash(s.file))
	text, err := os.ReadFile(name)
	if err != nil {
		r.fatalf(s, "%v", err)
	}
	after, err := applyDiff(string(text), s.text)
	if err != nil {
		r.fatalf(s, "%s: %v", s.file, err)
	}
	if err := os.WriteFile(name, []byte(after), 0o600); err != nil {
		r.fatalf(s, "%v", err)
	}
}

// query matches commands that only read.
var query = regexp.MustCompile(`^(processor verify|projector (get|list|history|why|events|event|blocked|status|diff|diff-versions)|producer redrive --dry-run)\b`)

// isQuery reports whether a script only reads. Such a script runs until its output is as
// shown: events may still be in flight, and a counter exists only after its first increment.
func isQuery(script string) bool {
	if strings.HasPrefix(script, "curl ") {
		return !strings.Contains(script, "Content-Type:")
	}
	return query.MatchString(strings.TrimPrefix(script, "build/bin/"))
}

// run runs a script in the first terminal, and compares its output.
func (r *reader) run(s *step) {
	r.t.Helper()
	patience := time.After(30 * time.Second)
	for {
		got, exit := r.script(s)
		lines := nonBlank(strings.Split(r.documented(got), "\n"))
		if exit == s.exit && (!s.shown || matchOutput(s.want, lines)) {
			return
		}
		if isQuery(s.text) {
			select {
			case <-time.After(20 * time.Millisecond):
				continue
			case <-patience:
			case <-r.ctx.Done():
			}
		}
		switch {
		case exit != s.exit:
			r.fatalf(s, "exit code %s, want %s: %s%s", exit, s.exit, s.text, got)
		default:
			r.fatalf(s, "%sprinted\n%s\nbut the document shows\n%s", s.text, strings.Join(lines, "\n"), strings.Join(s.want, "\n"))
		}
	}
}

// script runs the script of a step, and returns its output and its exit code.
func (r *reader) script(s *step) (out, exit string) {
	r.t.Helper()
	pwd := filepath.Join(r.scratch, "pwd")
	cmd := exec.CommandContext(r.ctx, "sh", "-e", "-c", r.actual(s.text)+"pwd >'"+pwd+"'\n")
	cmd.Dir, cmd.Env = r.dir, r.env
	text, err := cmd.CombinedOutput()
	var failed *exec.ExitError
	switch {
	case err == nil:
	case errors.As(err, &failed):
		return string(text), fmt.Sprint(failed.ExitCode())
	default:
		r.fatalf(s, "%v", err)
	}
	dir, err := os.ReadFile(pwd)
	if err != nil {
		r.fatalf(s, "%v", err)
	}
	r.dir = strings.TrimSpace(string(dir))
	return string(text), "0"
}

// actual replaces the document's addresses in a text by the test's.
func (r *reader) actual(text string) string {
	for documented, actual := range r.at {
		text = strings.ReplaceAll(text, documented, actual)
	}
	return text
}

// documented replaces the test's addresses in a text by the document's.
func (r *reader) documented(text string) string {
	for documented, actual := range r.at {
		text = strings.ReplaceAll(text, actual, documented)
	}
	return text
}

// start starts a program in another terminal, and waits until it is ready and has printed
// what the document shows.
func (r *reader) start(s *step) {
	r.t.Helper()
	text := strings.TrimSpace(s.text)
	if text == "make run" {
		text = "build/bin/sandbox up --bin build/bin"
	}
	r.started++
	listening := filepath.Join(r.scratch, fmt.Sprint("listening-", r.started))
	term := &terminal{done: make(chan error, 1)}
	term.cmd = exec.CommandContext(r.ctx, "sh", "-c", "exec "+r.actual(text)) // exec: signals reach the program itself
	term.cmd.Dir = r.dir
	term.cmd.Env = append(r.env[:len(r.env):len(r.env)], "MILLRACE_LISTEN=127.0.0.1:0", "MILLRACE_LISTEN_FILE="+listening)
	term.cmd.Stdout, term.cmd.Stderr = &term.out, &term.out
	if err := term.cmd.Start(); err != nil {
		r.fatalf(s, "%v", err)
	}
	go func() { term.done <- term.cmd.Wait() }()
	r.terminals[s.terminal] = term
	if !slices.Contains(r.opened, s.terminal) {
		r.opened = append(r.opened, s.terminal)
	}
	switch command := strings.Fields(text); filepath.Base(command[0]) + " " + command[1] {
	case "sandbox run":
		r.locate(s, term, map[string]string{"Kafka": kafkaAddress, "schema registry": registryAddress})
	case "sandbox up":
		r.locate(s, term, map[string]string{"Kafka": kafkaAddress, "schema registry": registryAddress, "processor": processorAddress, "projector": projectorAddress})
	case "processor run":
		r.awaitReady(s, term, listening, processorAddress)
	case "projector run":
		r.awaitReady(s, term, listening, projectorAddress)
	case "producer serve":
		r.awaitReady(s, term, listening, serveAddress)
	}
	for _, want := range s.want {
		r.await(s, term, fmt.Sprintf("it prints %q", want), func() bool {
			for line := range strings.Lines(r.documented(term.out.String())) {
				if matchLine(strings.TrimSpace(want), strings.TrimSpace(line)) {
					return true
				}
			}
			return false
		})
	}
}

// await waits for a condition that a program brings about.
func (r *reader) await(s *step, term *terminal, what string, done func() bool) {
	r.t.Helper()
	for !done() {
		select {
		case err := <-term.done:
			r.fatalf(s, "%sended (%v) before %s:\n%s", s.text, err, what, term.out.String())
		case <-r.ctx.Done():
			r.fatalf(s, "%v before %s:\n%s", r.ctx.Err(), what, term.out.String())
		case <-time.After(20 * time.Millisecond):
		}
	}
}

var address = regexp.MustCompile(`127\.0\.0\.1:[0-9]+`)

// locate reads the addresses that a sandbox prints: "  NAME  ADDRESS".
func (r *reader) locate(s *step, term *terminal, names map[string]string) {
	r.t.Helper()
	for name, documented := range names {
		r.await(s, term, "it prints the address of "+name, func() bool {
			for line := range strings.Lines(term.out.String()) {
				if at := address.FindString(line); at != "" && strings.HasPrefix(line, "  "+name+" ") {
					r.serve(documented, at)
					return true
				}
			}
			return false
		})
	}
}

// awaitReady waits until a program has written its address and is ready.
func (r *reader) awaitReady(s *step, term *terminal, file, documented string) {
	r.t.Helper()
	r.await(s, term, "it is ready", func() bool {
		at, err := os.ReadFile(file)
		if err != nil {
			return false
		}
		req, err := http.NewRequestWithContext(r.ctx, http.MethodGet, "http://"+strings.TrimSpace(string(at))+"/readyz", nil)
		if err != nil {
			return false
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			return false
		}
		defer resp.Body.Close()
		r.serve(documented, strings.TrimSpace(string(at)))
		return resp.StatusCode == http.StatusOK
	})
}

// serve notes where a program listens, for the commands that follow. Further workers of the
// same kind listen elsewhere in the document, too.
func (r *reader) serve(documented, actual string) {
	if r.at[documented] != "" {
		return
	}
	r.at[documented] = actual
	switch documented {
	case kafkaAddress:
		r.env = append(r.env, "MILLRACE_BROKERS="+actual)
	case registryAddress:
		r.env = append(r.env, "MILLRACE_REGISTRY=http://"+actual)
	case projectorAddress:
		r.env = append(r.env, "MILLRACE_ADDRESS="+actual)
	}
}

// stop ends the program of a terminal, if one runs there, as Ctrl-C does.
func (r *reader) stop(name string) {
	r.t.Helper()
	term := r.terminals[name]
	if term == nil {
		return
	}
	if err := term.cmd.Process.Signal(syscall.SIGINT); err != nil {
		r.t.Error(err)
	}
	select {
	case err := <-term.done:
		if err != nil {
			r.t.Errorf("%s: after Ctrl-C in terminal %s: %v\n%s", r.document, name, err, term.out.String())
		}
	case <-time.After(30 * time.Second):
		r.t.Errorf("%s: Ctrl-C in terminal %s does not end the program", r.document, name)
		if term.cmd.Process.Signal(syscall.SIGQUIT) == nil { // for its stacks
			r.t.Log(<-term.done)
		}
		return
	}
	delete(r.terminals, name)
}
