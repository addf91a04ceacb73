package resolve

import (
	"bytes"
	"context"
	"testing"
	"time"

	"pgregory.net/rapid"

	"millrace/pipeline/e2e/kafkatest"
)

// Consumers in Java read with Apache Avro for Java. It decides per value, as a Resolver does,
// and gives the same for each value, except for the deliberate differences and these: it
// compares the full names of enums and fixed types, and no names of records.
func TestKafkaConsumersWithAvroForJavaReadTheSame(t *testing.T) {
	if !kafkatest.Enabled() {
		t.Log("NOT run: needs MILLRACE_TEST_KAFKA=1; `make test-kafka` runs it")
		return
	}
	const n = 4000
	type question struct {
		kafkatest.Resolution
		ours []byte
		err  error
	}
	questions := rapid.Custom(func(t *rapid.T) *question {
		p := drawPair(t)
		if len(p.differs) > 0 || p.renamed {
			return nil
		}
		q := question{Resolution: kafkatest.Resolution{Writer: text(t, p.writer), Reader: text(t, p.reader), Value: p.value}}
		q.ours, q.err = resolved(parsed(t, p.writer), parsed(t, p.reader), p.value)
		return &q
	})
	var asked []*question
	var all []kafkatest.Resolution
	for seed := 0; len(all) < n && seed < 20*n; seed++ {
		if q := questions.Example(seed); q != nil {
			asked, all = append(asked, q), append(all, q.Resolution)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	theirs, err := kafkatest.ResolveWithAvroForJava(ctx, all)
	if err != nil {
		t.Fatal(err)
	}
	rejected, differ := 0, 0
	for i, java := range theirs {
		q := asked[i]
		if q.err != nil {
			rejected++
		}
		if (java.Fault == "") == (q.err == nil) && bytes.Equal(java.Value, q.ours) {
			continue
		}
		if differ++; differ <= 10 {
			t.Errorf("%s as %s: %x becomes %x, %v; in Java: %x, %s", q.Writer, q.Reader, q.Value, q.ours, q.err, java.Value, java.Fault)
		}
	}
	t.Logf("%d values: %d are rejected, %d differ", len(all), rejected, differ)
	if len(all) < n || rejected < n/20 || rejected > n*19/20 {
		t.Errorf("the samples are useless: %d values, %d rejected", len(all), rejected)
	}
}
