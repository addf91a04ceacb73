package processor

import (
	"bytes"
	"encoding/json"
	"errors"
	"testing"
	"time"

	"millrace/pipeline"
	"millrace/pipeline/cli"
	"millrace/pipeline/harness"
	"millrace/pipeline/processor/trace"
)

func TestTapViewShowsChangesBelowTheEvent(t *testing.T) {
	at := time.UnixMilli(1_800_000_000_000).UTC()
	line := func(stage, what, event string, err error) trace.Line {
		l := trace.Line{Pipeline: "p", Stage: stage, At: what, Topic: "in", Partition: 3, Offset: 17, Time: pipeline.Time(at), Key: "user-1\x1b[2J", Type: "Click"}
		if event != "" {
			l.Event = json.RawMessage(event)
		}
		if err != nil {
			l.Reason, l.Error = string(pipeline.ReasonOf(err)), err.Error()
		}
		return l
	}
	key := "user-2"
	moved := line("rekey", "passed", `{"id":"user-1","n":1}`, nil)
	moved.NewKey, moved.To, moved.Dropped = &key, []string{"out2"}, 3
	var out bytes.Buffer
	v := tapView{out: cli.Printer{Out: &out}}
	for _, l := range []trace.Line{
		line("enrich", "entering", `{"id":"user-1","n":1}`, nil), line("enrich", "passed", `{"id":"user-1","n":10}`, nil),
		line("rekey", "entering", `{"id":"user-1","n":1}`, nil), moved,
		line("assert", "entering", `{"id":"user-1","n":1}`, nil), line("assert", "failed", "", errors.New("no\x1b[31m")),
	} {
		v.show(l)
	}
	want := `2027-01-15T08:00:00.000Z in/3@17 key "user-1\u001b[2J" Click p
  {"id":"user-1","n":1}
  enrich               passed  n: 1 -> 10
(3 lines dropped: this client was too slow)
  rekey                passed  new key "user-2", to out2
  assert               failed  no [31m
`
	if out.String() != want {
		t.Errorf("got\n%s\nwant\n%s", out.String(), want)
	}
	out.Reset()
	v = tapView{out: cli.Printer{Out: &out}, color: true}
	v.show(line("assert", "failed", "", errors.New("no")))
	harness.WantLines(t, out.String(), "\x1b[31mfailed\x1b[0m")
}
