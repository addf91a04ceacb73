package kafka

import (
	"context"
	"errors"
	"slices"
	"testing"

	"github.com/twmb/franz-go/pkg/kgo"

	"millrace/pipeline"
)

// preparing is a handler that notes what it is called with.
type preparing struct {
	copier
	calls []string
	err   error
}

func (h *preparing) Prepare(_ context.Context, records []*pipeline.Record) error {
	call := "prepare"
	for _, r := range records {
		call += " " + string(r.Value)
	}
	h.calls = append(h.calls, call)
	return h.err
}

func (h *preparing) Handle(_ context.Context, in *pipeline.Record, _ pipeline.Emitter) error {
	h.calls = append(h.calls, string(in.Value))
	return nil
}

// fetched returns fetches with a partition of each list of values.
func fetched(partitions ...[]string) kgo.Fetches {
	topic := kgo.FetchTopic{Topic: "in"}
	for i, values := range partitions {
		p := kgo.FetchPartition{Partition: int32(i)}
		for offset, v := range values {
			p.Records = append(p.Records, &kgo.Record{Topic: "in", Partition: int32(i), Offset: int64(offset), Value: []byte(v)})
		}
		topic.Partitions = append(topic.Partitions, p)
	}
	return kgo.Fetches{{Topics: []kgo.FetchTopic{topic}}}
}

// A handler prepares the first record of each new prefix, for all partitions of a poll at
// once, before any record with a new prefix is handled. Prefixes that share a place in
// the list of recent ones are kept apart, and short values have none.
func TestRecordsWithNewPrefixesArePreparedTogether(t *testing.T) {
	h := &preparing{}
	b := newBatch(nil)
	b.suspect = &suspect{}
	for _, poll := range []struct {
		in   kgo.Fetches
		want []string
	}{
		{fetched([]string{"aaaaA1", "aaaaQ2", "aaaaA3"}, []string{"x", "aaaaB4", "aaaaQ5"}),
			[]string{"prepare aaaaA1 aaaaQ2 aaaaB4", "aaaaA1", "aaaaQ2", "aaaaA3", "x", "aaaaB4", "aaaaQ5"}},
		{fetched([]string{"aaaaQ1", "aaaaA2", "aaaaC3", "aaaaD4"}), []string{"aaaaQ1", "aaaaA2", "prepare aaaaC3 aaaaD4", "aaaaC3", "aaaaD4"}},
		{fetched([]string{"aaaaE1", "aaaaA2"}), []string{"aaaaE1", "aaaaA2"}}, // Handle does it as fast
	} {
		h.calls = nil
		if err := b.handle(t.Context(), h, poll.in); err != nil {
			t.Fatal(err)
		}
		if !slices.Equal(h.calls, poll.want) {
			t.Errorf("the calls were\n%q, want\n%q", h.calls, poll.want)
		}
	}
}

// After an error of Prepare, the same records are prepared again.
func TestPrepareIsRepeatedAfterAnError(t *testing.T) {
	h := &preparing{err: errors.New("no registry")}
	b := newBatch(nil)
	b.suspect = &suspect{}
	in := fetched([]string{"aaaaA1", "aaaaB2"})
	for i := range 3 {
		if err := b.handle(t.Context(), h, in); !errors.Is(err, h.err) || b.fewer != 1 {
			t.Fatalf("call %d: error %v, at most %d records the next time", i, err, b.fewer)
		}
	}
	h.err = nil
	if err := b.handle(t.Context(), h, in); err != nil {
		t.Fatal(err)
	}
	prepare := "prepare aaaaA1 aaaaB2"
	if want := []string{prepare, prepare, prepare, prepare, "aaaaA1", "aaaaB2"}; !slices.Equal(h.calls, want) {
		t.Errorf("the calls were %q, want %q", h.calls, want)
	}
}
