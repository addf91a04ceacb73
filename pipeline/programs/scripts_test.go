package programs_test

import (
	"bytes"
	"encoding/json"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"millrace/pipeline"
	"millrace/pipeline/cli"
	"millrace/pipeline/harness"
	"millrace/pipeline/kafka"
	"millrace/pipeline/producer"
	"millrace/pipeline/sandbox"
)

// TestSandboxScripts runs the scripts that need a broker and a registry. Each script has its
// own sandbox, whose addresses are in the environment. $TOPOLOGY is the shop's topology.
func TestSandboxScripts(t *testing.T) {
	topology, err := filepath.Abs(harness.ShopTopology())
	if err != nil {
		t.Fatal(err)
	}
	testscript.Run(t, testscript.Params{
		Dir:                 filepath.Join("testdata", "script", "sandbox"),
		RequireExplicitExec: true,
		UpdateScripts:       os.Getenv("UPDATE_SCRIPTS") != "",
		Setup: func(env *testscript.Env) error {
			expectPrivate(t, env)
			box, err := sandbox.New(sandbox.Config{})
			if err != nil {
				return err
			}
			env.Defer(func() {
				if err := box.Close(); err != nil {
					t.Error(err)
				}
			})
			env.Setenv("MILLRACE_BROKERS", strings.Join(box.Brokers(), ","))
			env.Setenv("MILLRACE_REGISTRY", box.RegistryURL())
			env.Setenv("TOPOLOGY", topology)
			return nil
		},
	})
}

const (
	paidID    = "4707dafd-3ce1-5973-9f7b-1c9c452822e7"
	cloudPaid = `{"specversion":"1.0","id":"` + paidID + `","source":"/shop","type":"shop.OrderPaid","time":"2026-01-02T03:04:05Z","datacontenttype":"application/json","subject":"o-1","data":{"id":"o-1"}}`
)

// TestServeOverASandbox sends an event to producer serve, reads it from Kafka at the offset in
// the answer, and stops the program.
func TestServeOverASandbox(t *testing.T) {
	box := harness.Sandbox(t)
	listening := filepath.Join(t.TempDir(), "address")
	var output harness.Buffer
	signals := make(chan os.Signal, 1)
	env := &cli.Env{
		Stdout: &output, Stderr: &output, Now: time.Now, Exit: func(int) {},
		Notify: func() (<-chan os.Signal, func()) { return signals, func() {} },
	}
	exit := make(chan int, 1)
	go func() {
		exit <- env.Main([]string{"serve", "-t", harness.ShopTopology(), "-b", box.Brokers()[0], "-r", box.RegistryURL(), "--listen", "127.0.0.1:0", "--listen-file", listening}, producer.Command)
	}()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	var address []byte
	for len(address) == 0 {
		select {
		case code := <-exit:
			t.Fatalf("producer serve ended with code %d: %s", code, output.String())
		case <-t.Context().Done():
			t.Fatal("the test ran out of time")
		case <-tick.C:
			address, _ = os.ReadFile(listening) // the file may not exist yet
		}
	}
	url := "http://" + string(bytes.TrimSpace(address))
	if resp := request(t, http.MethodGet, url+"/readyz", ""); resp.status != http.StatusOK {
		t.Errorf("not ready: %s", resp.body)
	}
	resp := request(t, http.MethodPost, url+"/v1/events", cloudPaid)
	var answer struct {
		Events []struct {
			Topic     string
			Partition int32
			Offset    int64
		}
	}
	if err := json.Unmarshal(resp.body, &answer); err != nil || len(answer.Events) != 1 {
		t.Fatalf("%d %s", resp.status, resp.body)
	}
	at := answer.Events[0]
	found := false
	if _, err := kafka.ReadPartition(t.Context(), kafka.Config{Brokers: box.Brokers()}, at.Topic, at.Partition, at.Offset, func(r *pipeline.Record) error {
		found = r.Offset == at.Offset && string(r.Key) == "o-1" && bytes.Contains(r.Value, []byte(paidID))
		return nil
	}); err != nil || !found {
		t.Errorf("the event is not at %+v: %v", at, err)
	}
	if resp := request(t, http.MethodGet, url+"/metrics", ""); !bytes.Contains(resp.body, []byte(`millrace_producer_events_total{result="sent",type="OrderPaid"} 1`)) ||
		!bytes.Contains(resp.body, []byte(`millrace_producer_requests_total{status="200"} 1`)) {
		t.Errorf("metrics\n%s", resp.body)
	}
	signals <- syscall.SIGTERM
	if code := <-exit; code != cli.ExitOK {
		t.Errorf("exit code %d after SIGTERM: %s", code, output.String())
	}
}

type requestAnswer struct {
	status int
	body   []byte
}

// request sends a request. The body, if any, is a CloudEvent.
func request(t *testing.T, method, url, body string) requestAnswer {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), method, url, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Content-Type", "application/cloudevents+json")
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := client.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return requestAnswer{resp.StatusCode, text}
}
