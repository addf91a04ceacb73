package kafka

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"millrace/pipeline"
)

// hoarder keeps references to the bytes of a batch, as a handler may, and compares them
// with copies when the batch has ended.
type hoarder struct {
	copier
	t       *testing.T
	key     [][]byte
	header  [][]byte
	want    []string
	batches int
}

func (h *hoarder) Handle(ctx context.Context, in *pipeline.Record, out pipeline.Emitter) error {
	h.key = append(h.key, in.Key)
	h.header = append(h.header, in.Headers[0].Value)
	h.want = append(h.want, string(in.Key)+" "+string(in.Headers[0].Value))
	out.Emit(&pipeline.Record{Topic: "out", Partition: pipeline.KeyPartition, Key: in.Key, Value: in.Value, Headers: in.Headers})
	return nil
}

func (h *hoarder) EndBatch(bool) {
	for i, want := range h.want {
		if got := string(h.key[i]) + " " + string(h.header[i]); got != want {
			h.t.Errorf("batch %d: the bytes of a record became %q, they were %q", h.batches, got, want)
			break
		}
	}
	h.key, h.header, h.want = h.key[:0], h.header[:0], h.want[:0]
	h.batches++
}

// The memory of a batch is reused only after the batch has ended, and the output is
// correct.
func TestBytesStayUntilTheBatchHasEnded(t *testing.T) {
	const n = 5000
	c := newCluster(t, 3)
	h := &hoarder{t: t}
	cfg := testConfig(c, h)
	cfg.CommitInterval = 2 * time.Millisecond
	_, stop := start(t, cfg)
	w, err := NewWriter(cfg.Client)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	for i := range n {
		w.Write(t.Context(), &pipeline.Record{
			Topic: "in", Partition: pipeline.KeyPartition, Key: fmt.Appendf(nil, "key-%d", i), Value: fmt.Appendf(nil, "%06d", i),
			Headers: []pipeline.Header{{Key: "n", Value: fmt.Appendf(nil, "%d", i)}},
		}, func(err error) {
			if err != nil {
				t.Error(err)
			}
		})
		if i%500 == 499 {
			if err := w.Flush(t.Context()); err != nil {
				t.Fatal(err)
			}
			committed(t, c, "out", i+1) // so the next records are in another batch
		}
	}
	wantEach(t, committed(t, c, "out", n), n)
	if err := stop(); err != nil {
		t.Error(err)
	}
	if h.batches < 3 {
		t.Errorf("%d batches: no memory was reused", h.batches)
	}
	for _, p := range c.PartitionInfos("out") {
		_, err := ReadPartition(t.Context(), cfg.Client, "out", p.Partition, 0, func(r *pipeline.Record) error {
			if got, _ := r.Header("n"); fmt.Sprintf("%06s", got) != string(r.Value) || "key-"+string(got) != string(r.Key) {
				t.Errorf("key %s, value %s, header %s", r.Key, r.Value, got)
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
}

// recycler keeps references to the bytes of each part of a batch, and compares them
// with copies before the part is reused.
type recycler struct {
	hoarder
	parts  []hoard
	reused int
	fail   int // number of batches to fail
}

// hoard is the bytes of one part.
type hoard struct {
	key, header [][]byte
	want        []string
}

func (r *recycler) Flush(context.Context, pipeline.Emitter) error {
	if r.fail > 0 {
		r.fail--
		return errors.New("not this time")
	}
	return nil
}

func (r *recycler) Seal() bool {
	r.parts = append(r.parts, hoard{r.key, r.header, r.want})
	r.key, r.header, r.want = nil, nil, nil
	return true
}

func (r *recycler) Reuse() {
	r.reused++
	r.check()
}

// check checks the oldest part.
func (r *recycler) check() {
	p := r.parts[0]
	r.parts = r.parts[1:]
	for i, want := range p.want {
		if got := string(p.key[i]) + " " + string(p.header[i]); got != want {
			r.t.Errorf("part %d: the bytes of a record became %q, they were %q", r.reused, got, want)
			return
		}
	}
}

func (r *recycler) EndBatch(committed bool) {
	for len(r.parts) > 0 {
		r.check()
	}
	r.hoarder.EndBatch(committed)
}

// The memory of a part is reused within the batch, but only after all records written
// from it are acknowledged. The output is correct, also if the first attempt was rolled
// back.
func TestBytesOfAPartStayUntilItIsAcknowledged(t *testing.T) {
	const n = 20_000
	for _, aborts := range []int{0, 1} {
		t.Run(fmt.Sprintf("%d aborts", aborts), func(t *testing.T) {
			c := newCluster(t, 3)
			w, err := NewWriter(c.config())
			if err != nil {
				t.Fatal(err)
			}
			defer w.Close()
			for i := range n {
				w.Write(t.Context(), &pipeline.Record{
					Topic: "in", Partition: pipeline.KeyPartition, Key: fmt.Appendf(nil, "key-%d", i), Value: fmt.Appendf(nil, "%06d", i),
					Headers: []pipeline.Header{{Key: "n", Value: fmt.Appendf(nil, "%d", i)}},
				}, func(err error) {
					if err != nil {
						t.Error(err)
					}
				})
			}
			if err := w.Flush(t.Context()); err != nil {
				t.Fatal(err)
			}
			h := &recycler{hoarder: hoarder{t: t}, fail: aborts}
			cfg := testConfig(c, h)
			cfg.MaxPoll, cfg.CommitInterval = 50, 200*time.Millisecond // many polls, and acknowledgements between them
			_, stop := start(t, cfg)
			wantEach(t, committed(t, c, "out", n), n)
			if err := stop(); err != nil {
				t.Error(err)
			}
			if h.fail > 0 {
				t.Error("no batch was rolled back")
			}
			if h.reused == 0 {
				t.Error("no memory was reused before the end of the batch")
			}
		})
	}
}

// Slices of a slab are zero when taken, never overlap, and keep their address.
func TestSlab(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var s slab[int]
		for range rapid.IntRange(1, 3).Draw(t, "batches") {
			var taken [][]int
			for i, n := range rapid.SliceOfN(rapid.IntRange(0, slabBlock+1), 0, 20).Draw(t, "sizes") {
				got := s.take(n)
				if len(got) != n || slices.ContainsFunc(got, func(v int) bool { return v != 0 }) {
					t.Fatalf("take(%d) gave %v", n, got)
				}
				for j := range got {
					got[j] = i + 1
				}
				taken = append(taken, got)
			}
			for i, got := range taken {
				if slices.ContainsFunc(got, func(v int) bool { return v != i+1 }) {
					t.Fatalf("slice %d was overwritten: %v", i, got)
				}
			}
			s.reset()
		}
	})
}
