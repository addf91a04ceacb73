package programs_test

import (
	"bufio"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"millrace/pipeline/cli"
	"millrace/pipeline/harness"
	"millrace/pipeline/kafka"
	"millrace/pipeline/programs"
	"millrace/pipeline/sandbox"
)

// lagPlaces is where a user sees the lag of the projections of sumTopology.
type lagPlaces struct {
	t                    *testing.T
	box                  *sandbox.Sandbox
	file                 string
	processor, projector string // addresses
}

// of returns the lag of a projection and its topic in all places, in offsets.
func (l *lagPlaces) of(projection, topic, group string) map[string]int64 {
	out := map[string]int64{}
	var all struct {
		Projections []struct {
			Name       string
			Partitions []struct{ Lag int64 }
		}
	}
	_ = harness.GetJSON(l.t.Context(), "http://"+l.projector+"/v1/projections", &all)
	for _, p := range all.Projections {
		for _, at := range p.Partitions {
			if p.Name == projection {
				out["answer"] += at.Lag
			}
		}
	}
	out["list"] = l.column("list", projection, "--address", l.projector)
	out["metric"] = l.metric(l.projector, "millrace_consumer_lag_records", group, topic)
	out["status"] = l.status(projection)
	if n, err := kafka.Lag(l.t.Context(), kafka.Config{Brokers: l.box.Brokers()}, group, topic); err == nil {
		out["group"] = n
	}
	return out
}

// command returns the output of a command of the projector.
func (l *lagPlaces) command(args ...string) string {
	var out, errors harness.Buffer
	env := &cli.Env{Stdout: &out, Stderr: &errors, Now: time.Now, Exit: func(int) {}, Notify: func() (<-chan os.Signal, func()) { return nil, func() {} }}
	if code := env.Main(args, programs.Projector); code != cli.ExitOK {
		l.t.Errorf("%v: exit code %d: %s", args, code, errors.String())
	}
	return out.String()
}

// column returns the last column of the row of a projection.
func (l *lagPlaces) column(command, projection string, flags ...string) int64 {
	for line := range strings.Lines(l.command(append([]string{command}, flags...)...)) {
		if fields := strings.Fields(line); len(fields) > 1 && fields[0] == projection {
			n, err := strconv.ParseInt(fields[len(fields)-1], 10, 64)
			if err != nil {
				l.t.Error(err)
			}
			return n
		}
	}
	return -1
}

func (l *lagPlaces) status(projection string) int64 {
	var all []struct {
		Projection string
		Lag        int64
	}
	if err := json.Unmarshal([]byte(l.command("status", "-t", l.file, "-b", l.box.Brokers()[0], "--interval", "0s", "--json")), &all); err != nil {
		l.t.Error(err)
	}
	for _, v := range all {
		if v.Projection == projection {
			return v.Lag
		}
	}
	return -1
}

// metric returns the sum of the series of a group and a topic, -1 if there is none.
func (l *lagPlaces) metric(address, name, group, topic string) (sum int64) {
	_, text := get("http://" + address + "/metrics")
	found := false
	for lines := bufio.NewScanner(strings.NewReader(text)); lines.Scan(); {
		line := lines.Text()
		if strings.HasPrefix(line, name+"{") && strings.Contains(line, fmt.Sprintf("group=%q", group)) && strings.Contains(line, fmt.Sprintf("topic=%q", topic)) {
			v, err := strconv.ParseFloat(line[strings.LastIndex(line, " ")+1:], 64)
			if err != nil {
				l.t.Error(err)
			}
			found = true
			sum += int64(v)
		}
	}
	if !found {
		return -1
	}
	return sum
}

// await waits until all places show the same lag.
func (l *lagPlaces) await(projection, topic, group string, want int64) {
	l.t.Helper()
	var last map[string]int64
	if !until(l.t, func() bool {
		last = l.of(projection, topic, group)
		for _, n := range last {
			if n != want {
				return false
			}
		}
		return len(last) == 5
	}) {
		l.t.Errorf("%s: the lag is never %d everywhere; at last %v", projection, want, last)
	}
}

// caughtUp checks that nothing has a lag.
func (l *lagPlaces) caughtUp() {
	l.t.Helper()
	l.await("sum", "clicks", "t-projector", 0)
	l.await("direct", "in", "t-projector", 0)
	if !until(l.t, func() bool { return l.metric(l.processor, "millrace_consumer_lag_records", "t-p", "in") == 0 }) {
		l.t.Error("the processor always has a lag")
	}
	_, answer := get("http://" + l.projector + "/v1/projections/sum")
	if !strings.Contains(answer, `"lag":0,"lag_seconds":0`) {
		l.t.Errorf("a list shows a lag: %.300s", answer)
	}
}

// Answers, lists, metrics, `projector status` and the group show the same lag: 0 when all is
// read, also behind transaction markers, rolled-back and deleted records and after a restart,
// and the offsets from a record on that cannot be folded at the moment.
func TestAnswersListsAndMetricsShowTheSameLag(t *testing.T) {
	dir := t.TempDir()
	box := harness.Sandbox(t)
	l := &lagPlaces{t: t, box: box, file: clickTopology(t, dir, sumTopology)}
	registry, down := switchedRegistry(t, box)
	listening := filepath.Join(dir, "processor.address")
	processor := run(programs.Processor, box, "run", "-t", l.file, "--sessions", "1", "--commit-interval", "20ms", "--listen", "127.0.0.1:0", "--listen-file", listening)
	defer processor.stop(t)
	begin := func() (stop func() error) {
		var err error
		if l.projector, stop, err = startProjector(t.Context(), l.file, dir, box, "-r", registry, "--sessions", "2"); err != nil {
			t.Fatal(err)
		}
		return stop
	}
	stop := begin()
	defer func() {
		if err := stop(); err != nil {
			t.Error(err)
		}
	}()
	if !until(t, func() bool {
		text, err := os.ReadFile(listening)
		l.processor = strings.TrimSpace(string(text))
		return err == nil
	}) {
		t.Fatal("the processor does not listen")
	}
	clicks := newClickSender(t, box, "in")
	for n := range int64(30) {
		clicks.send(n)
	}
	for n := range int64(30) {
		awaitState(t, l.projector, "sum", fmt.Sprint("e-", n), n)
	}
	l.caughtUp()

	cl, err := kgo.NewClient(kgo.SeedBrokers(box.Brokers()...), kgo.TransactionalID("elsewhere"), kgo.RecordPartitioner(kgo.ManualPartitioner()))
	if err != nil {
		t.Fatal(err)
	}
	defer cl.Close()
	rollBack(t, cl, "clicks")
	l.caughtUp()

	// The beginning is deleted, and the projector starts again.
	offsets := kadm.Offsets{}
	for p := range int32(2) {
		offsets.Add(kadm.Offset{Topic: "clicks", Partition: p, At: 3, LeaderEpoch: -1})
	}
	if _, err := kadm.NewClient(cl).DeleteRecords(t.Context(), offsets); err != nil {
		t.Fatal(err)
	}
	if err := stop(); err != nil {
		t.Error(err)
	}
	stop = begin()
	l.caughtUp()

	// A record with an unknown schema id, while the registry does not answer.
	down.Store(true)
	bad := &kgo.Record{Topic: "in", Key: []byte("x"), Value: []byte{0, 0, 0, 255, 255, 1}}
	w, err := kgo.NewClient(kgo.SeedBrokers(box.Brokers()...), kgo.RecordPartitioner(kgo.ManualPartitioner()))
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	behind := []*kgo.Record{bad}
	for range 4 {
		behind = append(behind, &kgo.Record{Topic: "in", Key: []byte("x"), Value: []byte{0, 0, 0, 255, 254, 1}})
	}
	if err := w.ProduceSync(t.Context(), behind...).FirstErr(); err != nil {
		t.Fatal(err)
	}
	l.await("direct", "in", "t-projector", 5)
	down.Store(false)
	l.caughtUp()
}

// rollBack writes records to a topic in a transaction that it aborts.
func rollBack(t *testing.T, cl *kgo.Client, topic string) {
	t.Helper()
	if err := cl.BeginTransaction(); err != nil {
		t.Fatal(err)
	}
	for p := range int32(2) {
		if err := cl.ProduceSync(t.Context(), &kgo.Record{Topic: topic, Partition: p, Key: []byte("k"), Value: []byte("rolled back")}).FirstErr(); err != nil {
			t.Fatal(err)
		}
	}
	if err := cl.EndTransaction(t.Context(), kgo.TryAbort); err != nil {
		t.Fatal(err)
	}
}

// switchedRegistry returns the URL of the sandbox's registry behind a proxy, which answers
// with an error while down is set.
func switchedRegistry(t *testing.T, box *sandbox.Sandbox) (address string, down *atomic.Bool) {
	t.Helper()
	to, err := url.Parse(box.RegistryURL())
	if err != nil {
		t.Fatal(err)
	}
	down = new(atomic.Bool)
	proxy := httputil.NewSingleHostReverseProxy(to)
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if down.Load() {
			http.Error(w, "down", http.StatusServiceUnavailable)
			return
		}
		proxy.ServeHTTP(w, r)
	}))
	t.Cleanup(server.Close)
	return server.URL, down
}
