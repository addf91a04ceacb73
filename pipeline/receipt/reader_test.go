package receipt

import (
	"encoding/json"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"pgregory.net/rapid"

	"millrace/pipeline"
	"millrace/pipeline/kafka"
	"millrace/pipeline/topology"
)

// add adds the receipt of an event, written at a second.
func (r *Reader) add(t *testing.T, id string, receipt Receipt, second int) {
	t.Helper()
	value, err := json.Marshal(receipt)
	if err != nil {
		t.Fatal(err)
	}
	if err := r.Take(&pipeline.Record{Topic: "receipts", Key: []byte(id), Value: value, Time: time.Unix(int64(second), 0)}); err != nil {
		t.Fatal(err)
	}
}

// An event cannot arrive if receipts block every way that it may have taken.
func TestEventHasAnOutcomeIfEveryWayIsBlocked(t *testing.T) {
	topics := map[string]*topology.Topic{}
	topic := func(name string) *topology.Topic {
		if topics[name] == nil {
			topics[name] = &topology.Topic{Name: name}
		}
		return topics[name]
	}
	for _, test := range []struct {
		pipelines string // NAME FROM TO
		receipts  string // ID PIPELINE OUTCOME
		want      string // for the event e; "" if it may arrive
	}{
		{"a in out", "", ""},
		{"a in out", "e a filtered", "filtered a s-a"},
		{"a in out", "e a dead_letter", "dead_letter a s-a bad"},
		{"a in out", "e a dead_letter, e a filtered", "filtered a s-a"}, // the event was sent again
		{"a in out", "other a filtered", ""},
		{"a in other", "e a filtered", ""},
		{"a in m, b m out", "e b filtered", "filtered b s-b"},
		{"a in m, b m out", "e a filtered", "filtered a s-a"},
		{"a in out, b in out", "e a filtered", ""},
		{"a in out, b in out", "e a filtered, e b dead_letter", "dead_letter b s-b bad"},
		{"a in out, b else out", "e a filtered", "filtered a s-a"},
		{"a in m, b m out, c in out", "e b filtered", ""},
		{"a in m, b m out, c in out", "e b filtered, e c filtered", "filtered b s-b"},
		{"a in m, b m out, c in out", "e a filtered, e c filtered", "filtered a s-a"},
		{"a in m, b else m, c m out", "e a filtered", "filtered a s-a"},
		{"a in m, b else m, c m out, d else out", "e c filtered", ""},
		{"a in m, b else m, c m out, d else out", "e a filtered", "filtered a s-a"},
		{"a in out", "e a duplicate", "filtered a s-a, and may arrive"},
		{"a in out", "e a filtered, e a duplicate", "filtered a s-a"}, // the first event was filtered, too
	} {
		plan := &topology.Topology{}
		for _, line := range strings.Split(test.pipelines, ", ") {
			words := strings.Fields(line)
			plan.Pipelines = append(plan.Pipelines, &topology.Pipeline{Name: words[0], From: topic(words[1]), To: topic(words[2]), DeadLetter: topic("dead"), Receipts: topic("receipts")})
		}
		var lines []string
		if test.receipts != "" {
			lines = strings.Split(test.receipts, ", ")
		}
		out, ok := NewUpstream(plan, topic("out"), knownReceipts(t, time.Hour, lines...)).Outcome("e")
		got := ""
		if ok {
			if got = strings.TrimSpace(fmt.Sprintf("%s %s %s %s", out.State, out.Pipeline, out.Stage, out.Reason)); out.Open {
				got += ", and may arrive"
			}
			if !strings.Contains(out.Detail, "pipeline "+out.Pipeline) {
				t.Errorf("%s; %s: %q does not name the pipeline", test.pipelines, test.receipts, out.Detail)
			}
		}
		if got != test.want {
			t.Errorf("%s; %s: %q, want %q", test.pipelines, test.receipts, got, test.want)
		}
	}
}

func TestPossibleOutcomesOfAnEventThatHasNotArrived(t *testing.T) {
	in, out, letters, receipts := &topology.Topic{Name: "in"}, &topology.Topic{Name: "out"}, &topology.Topic{Name: "letters"}, &topology.Topic{Name: "receipts"}
	plan := &topology.Topology{Pipelines: []*topology.Pipeline{
		{Name: "one", From: in, To: out, DeadLetter: letters}, {Name: "two", From: in, To: letters, DeadLetter: letters},
		{Name: "three", From: in, To: in, Targets: [][]*topology.Topic{{letters, out}}, DeadLetter: letters, Receipts: receipts},
	}}
	plan.Pipelines[2].To = letters
	known := knownReceipts(t, time.Hour, "e three filtered")
	want := "pipeline one may have filtered it, or written it to letters; pipeline three filtered it: stage s-three, but it may arrive another way"
	if got := NewUpstream(plan, out, known).Possible("e"); got != want {
		t.Errorf("%q, want %q", got, want)
	}
	want = "pipeline three has not reported since 1969-12-31T23:00:00Z that it filtered it or wrote it to letters, as far as its receipts were read"
	if got := NewUpstream(plan, out, known).Possible("f"); !strings.HasSuffix(got, want) {
		t.Errorf("%q, want %q at its end", got, want)
	}
	if got := NewUpstream(plan, in, known).Possible("e"); got != "" {
		t.Errorf("a topic without upstream pipelines: %q", got)
	}
}

// The oldest receipts are forgotten when they are too old or too many, and since has
// the time from which all are known.
func TestOldReceiptsAreForgotten(t *testing.T) {
	filtered := Receipt{Pipeline: "p", Outcome: OutcomeFiltered, Stage: "s"}
	known := func(r *Reader, second int) bool {
		_, ok := r.of(fmt.Sprint("e-", second), "p")
		return ok
	}
	r := knownReceipts(t, 10*time.Second)
	for second := 1; second <= 100; second++ {
		r.add(t, fmt.Sprint("e-", second), filtered, second)
		for ago := range min(second, 10) {
			if !known(r, second-ago) {
				t.Fatalf("at %d, the receipt of %d is forgotten", second, second-ago)
			}
		}
		if known(r, second-21) {
			t.Errorf("at %d, the receipt of %d is known", second, second-21)
		}
		if since := int(r.since.Unix()); known(r, since-1) || since > 0 && !known(r, since+1) {
			t.Errorf("at %d, the receipts since %d are not the known ones", second, since)
		}
	}

	r = knownReceipts(t, time.Hour)
	r.most = 1 << 20
	const n = 50_000
	for i := 1; i <= n; i++ {
		r.add(t, fmt.Sprint("e-", i), filtered, 1)
	}
	if bytes := r.recent.Bytes() + r.older.Bytes(); bytes > r.most*3/2 {
		t.Errorf("the receipts take %d bytes", bytes)
	}
	if known(r, 1) || !known(r, n) || !known(r, n-1000) {
		t.Error("the latest receipts must be known, and the first forgotten")
	}
}

func TestInvalidReceiptsAreCounted(t *testing.T) {
	r := knownReceipts(t, time.Hour)
	for _, value := range []string{"", "null", "{", `{"outcome":"filtered"}`, `{"outcome":"lost","pipeline":"p"}`} {
		if err := r.Take(&pipeline.Record{Topic: "receipts", Key: []byte("e"), Value: []byte(value)}); err != nil {
			t.Error(err)
		}
	}
	if got := testutil.ToFloat64(r.rejected.WithLabelValues("receipts")); got != 5 {
		t.Errorf("%v records are counted", got)
	}
}

// knownReceipts returns a reader with receipts, given as ID PIPELINE OUTCOME, of the
// seconds 1, 2, 3 and so on.
func knownReceipts(t *testing.T, span time.Duration, lines ...string) *Reader {
	t.Helper()
	r := NewReader(kafka.Config{}, []*topology.Topic{{Name: "receipts"}}, span, func() time.Time { return time.Unix(0, 0) },
		slog.New(slog.NewTextHandler(t.Output(), nil)), prometheus.NewRegistry())
	for i, line := range lines {
		words := strings.Fields(line)
		receipt := Receipt{Pipeline: words[1], Outcome: Outcome(words[2]), Stage: "s-" + words[1]}
		switch receipt.Outcome {
		case OutcomeDeadLetter:
			receipt.Reason = "bad"
		case "duplicate":
			receipt.Outcome, receipt.Duplicate = OutcomeFiltered, true
		}
		r.add(t, words[0], receipt, i+1)
	}
	return r
}

// With any records on the topic, the reader continues.
func TestGarbageOnAReceiptsTopicStopsNothing(t *testing.T) {
	r := knownReceipts(t, time.Hour)
	rapid.Check(t, func(t *rapid.T) {
		value := rapid.OneOf(rapid.SliceOf(rapid.Byte()), rapid.Map(rapid.String(), func(s string) []byte { return []byte(`{"pipeline":"p","outcome":"` + s + `"}`) })).Draw(t, "value")
		if err := r.Take(&pipeline.Record{Topic: "receipts", Key: rapid.SliceOf(rapid.Byte()).Draw(t, "key"), Value: value}); err != nil {
			t.Fatal(err)
		}
	})
}
