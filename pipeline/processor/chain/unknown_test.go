package chain_test

import (
	"encoding/binary"
	"fmt"
	"testing"
	"time"

	"millrace/pipeline"
	"millrace/pipeline/deadletter"
	"millrace/pipeline/harness"
	"millrace/pipeline/processor/processortest"
)

// Many unknown schema ids take about as long as one: each costs half a second of waits
// between its requests. Good records around them pass.
func TestManyUnknownSchemaIDsDoNotHoldUpGoodRecords(t *testing.T) {
	b := processortest.NewBench(t, harness.PlainTopology)
	const n = 300
	if _, err := b.Worker("0").EnsureTopics(t.Context(), b.Plan.Topics); err != nil {
		t.Fatal(err)
	}
	at := time.UnixMilli(1_800_000_000_000)
	b.Write(2*n, func(i int) *pipeline.Record {
		r := b.Click(fmt.Sprint("e-", i), 1, at)
		if i%2 == 1 {
			binary.BigEndian.PutUint32(r.Value[1:], uint32(1_000_000+i))
		}
		return r
	})
	began := time.Now()
	stop := b.Start("0")
	b.CaughtUp()
	if took := time.Since(began); took > 60*time.Second {
		t.Errorf("it took %v; one after the other takes 150 s", took)
	}
	stop()
	out, dead := 0, 0
	b.Read("out", func(*pipeline.Record) { out++ })
	b.Read("dead", func(r *pipeline.Record) {
		if l := deadletter.Parse(r); l.Reason == pipeline.ReasonUnknownSchema {
			dead++
		}
	})
	if out != n || dead != n {
		t.Errorf("%d events are out and %d are dead letters, want %d of each", out, dead, n)
	}
}
