package programs_test

import (
	"fmt"
	"net/http"
	"os"
	"strings"
	"testing"

	"github.com/spf13/cobra"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"millrace/pipeline/cli"
	"millrace/pipeline/harness"
	"millrace/pipeline/programs"
)

// Retention deletes events while all workers are stopped. They do not start, until the
// operator accepts the loss. Then they continue, the states remain, and answers show what
// they lack.
func TestWorkersContinueAfterUnreadEventsWereDeletedIfTheOperatorAcceptsIt(t *testing.T) {
	dir := t.TempDir()
	file := clickTopology(t, dir, sumTopology)
	box := harness.Sandbox(t)
	start := func(program string, command func(*cli.Env) *cobra.Command, flags ...string) *program {
		args := []string{"run", "-t", file, "--sessions", "1", "--commit-interval", "20ms", "--listen", "127.0.0.1:0", "--listen-file", dir + "/" + program}
		if program == "projector" {
			args = append(args, "--data-dir", dir+"/data")
		}
		_ = os.Remove(dir + "/" + program)
		return run(command, box, append(args, flags...)...)
	}
	address := func() string {
		awaitReady(t, dir+"/projector")
		text, err := os.ReadFile(dir + "/projector")
		if err != nil {
			t.Fatal(err)
		}
		return strings.TrimSpace(string(text))
	}
	clicks := newClickSender(t, box, "in")
	send := func(from, to int64) {
		for n := from; n < to; n++ {
			clicks.send(n)
		}
	}

	processor, projector := start("processor", programs.Processor), start("projector", programs.Projector)
	address() // the topics exist
	send(0, 30)
	for n := range int64(30) {
		awaitState(t, address(), "direct", fmt.Sprint("e-", n), n)
		awaitState(t, address(), "sum", fmt.Sprint("e-", n), n)
	}
	processor.stop(t)
	projector.stop(t)

	send(30, 50)
	cl, err := kgo.NewClient(kgo.SeedBrokers(box.Brokers()...))
	if err != nil {
		t.Fatal(err)
	}
	defer cl.Close()
	adm := kadm.NewClient(cl)
	ends, err := adm.ListEndOffsets(t.Context(), "in")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := adm.DeleteRecords(t.Context(), ends.Offsets()); err != nil {
		t.Fatal(err)
	}
	send(50, 60)

	for name, command := range map[string]func(*cli.Env) *cobra.Command{"processor": programs.Processor, "projector": programs.Projector} {
		p := start(name, command)
		if code := <-p.exit; code == cli.ExitOK || !strings.Contains(p.output.String(), "--accept-loss") {
			t.Errorf("%s without the flag: exit code %d\n%s", name, code, p.output.String())
		}
	}
	processor, projector = start("processor", programs.Processor, "--accept-loss"), start("projector", programs.Projector, "--accept-loss")
	check := func() {
		t.Helper()
		for _, n := range []int64{0, 29, 50, 59} {
			awaitState(t, address(), "direct", fmt.Sprint("e-", n), n)
			awaitState(t, address(), "sum", fmt.Sprint("e-", n), n)
		}
		for _, projection := range []string{"direct", "sum"} {
			if status, body := get("http://" + address() + "/v1/projections/" + projection + "/e-40"); status != http.StatusNotFound {
				t.Errorf("%s: an aggregate of a deleted event: %d %s", projection, status, body)
			}
		}
		if _, body := get("http://" + address() + "/v1/projections/direct/e-0"); !strings.Contains(body, `"unread":[{"from":`) {
			t.Errorf("the answer does not have the gap: %s", body)
		}
		if _, body := get("http://" + address() + "/v1/projections/sum/e-0"); strings.Contains(body, `"unread"`) {
			t.Errorf("nothing was deleted from this topic: %s", body)
		}
	}
	check()
	for name, p := range map[string]*program{"processor": processor, "projector": projector} {
		p.stop(t)
		if !strings.Contains(p.output.String(), "retention deleted offsets unread; continuing at the start of the log") {
			t.Errorf("%s does not log the gap:\n%s", name, p.output.String())
		}
	}

	// From now on, the flag is not necessary.
	processor, projector = start("processor", programs.Processor), start("projector", programs.Projector)
	check()
	var shown harness.Buffer
	env := &cli.Env{Stdout: &shown, Stderr: &shown}
	if code := env.Main([]string{"get", "direct", "e-0", "--address", address()}, programs.Projector); code != cli.ExitOK {
		t.Errorf("get: exit code %d", code)
	}
	if !strings.Contains(shown.String(), "which the topic had deleted before they were read") {
		t.Errorf("get does not show the gap:\n%s", shown.String())
	}
	processor.stop(t)
	projector.stop(t)
}
