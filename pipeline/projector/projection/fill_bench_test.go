package projection

import (
	"context"
	"math/rand/v2"
	"testing"
	"time"

	"millrace/pipeline"
	"millrace/pipeline/projector/internalrecord"
)

// lastSnapshots keeps the last record of each key.
type lastSnapshots map[string]pipeline.Record

func (s lastSnapshots) Emit(r *pipeline.Record) {
	one := *r
	one.Key, one.Value = append([]byte(nil), r.Key...), append([]byte(nil), r.Value...)
	s[string(r.Key)] = one
}

// BenchmarkFill compares the first fold of a log with the restore of the same partition
// after its store was lost: until the ids of the past are known, and until the history is
// complete. Neither reads from Kafka.
func BenchmarkFill(b *testing.B) {
	size := benchSize(b)
	var first, ids, history, firstCPU, idsCPU, historyCPU time.Duration
	for range b.N {
		rng := rand.New(rand.NewPCG(1, 2))
		w := openBenched(b, b.TempDir(), true, noSnapshots)
		e := newUserUpdate(b, w.types)
		log := make([]pipeline.Record, size)
		for n := range log {
			log[n] = benchedRecord(n, append([]byte(nil), e.of(rng.IntN(size/5))...))
		}
		snapshots := lastSnapshots{}
		began, cpu := time.Now(), cpuTime(b)
		for n := range log {
			if err := w.handler.Handle(b.Context(), &log[n], snapshots); err != nil {
				b.Fatal(err)
			}
			if (n+1)%benchBatch == 0 || n == size-1 {
				if err := w.handler.Flush(b.Context(), snapshots); err != nil {
					b.Fatal(err)
				}
				w.handler.EndBatch(true)
			}
		}
		w.ps.Close()
		first, firstCPU = first+time.Since(began), firstCPU+cpuTime(b)-cpu
		w.close(b)

		w = openBenched(b, b.TempDir(), true, func(_ context.Context, _ string, _ int32, do func(*pipeline.Record) error) (int64, error) {
			for key, r := range snapshots {
				if key != string(internalrecord.CheckpointKey) {
					if err := do(&r); err != nil {
						return 0, err
					}
				}
			}
			r := snapshots[string(internalrecord.CheckpointKey)]
			return int64(len(snapshots)), do(&r)
		}, func(_ context.Context, _ string, _ int32, from int64, do func(*pipeline.Record) error) error {
			for n := from; n < int64(size); n++ {
				if err := do(&log[n]); err != nil {
					return err
				}
			}
			return nil
		})
		began, cpu = time.Now(), cpuTime(b)
		u := w.ps.assignedUnits()[0]
		if err := w.ps.fill(b.Context(), u); err != nil {
			b.Fatal(err)
		}
		ids, idsCPU = ids+time.Since(began), idsCPU+cpuTime(b)-cpu
		began, cpu = time.Now(), cpuTime(b)
		if err := w.ps.fill(b.Context(), u); err != nil {
			b.Fatal(err)
		}
		history, historyCPU = history+time.Since(began), historyCPU+cpuTime(b)-cpu
		if u.lanes[0].shadow != nil {
			b.Fatal("the history is not complete")
		}
		w.close(b)
	}
	for _, one := range []struct {
		what      string
		took, cpu time.Duration
	}{{"fold", first, firstCPU}, {"ids", ids, idsCPU}, {"history", history, historyCPU}} {
		b.ReportMetric(one.took.Seconds()/float64(b.N), one.what+"-s")
		b.ReportMetric(one.cpu.Seconds()/float64(b.N), one.what+"-cpu-s")
	}
}
