package kafka

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"sync"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"millrace/pipeline"
)

// assignee is a copier that records the partitions that are assigned to it.
type assignee struct {
	copier
	mu   sync.Mutex // guards have
	have map[int32]int
}

func (h *assignee) Assign(_ context.Context, ps []Partition) ([]int64, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.have == nil {
		h.have = map[int32]int{}
	}
	from := make([]int64, len(ps))
	for i, p := range ps {
		h.have[p.Partition]++
		from[i] = max(p.Committed, p.Start)
	}
	return from, nil
}

func (h *assignee) Revoke(ps []Partition) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, p := range ps {
		delete(h.have, p.Partition)
	}
}

func (h *assignee) partitions() []int32 {
	h.mu.Lock()
	defer h.mu.Unlock()
	return slices.Sorted(maps.Keys(h.have))
}

// Workers come and go while nothing is written, so no session ends a transaction. Each
// session still learns of every revocation: each partition is with one session, and the
// metrics of the workers add up.
func TestEveryRevocationReachesAnIdleSession(t *testing.T) {
	for _, guarantee := range []Guarantee{ExactlyOnce, AtLeastOnce} {
		for _, protocol := range []GroupProtocol{ClassicProtocol, ConsumerProtocol} {
			t.Run(fmt.Sprintf("%s, %s", guarantee, protocol), func(t *testing.T) {
				t.Parallel()
				const partitions = 12
				c := newCluster(t, partitions, fastHeartbeats)
				inject(t, c, 0, 100)
				type worker struct {
					sessions []*assignee
					metrics  *Metrics
					stop     func() error
				}
				var workers []worker
				begin := func(name string) {
					w := worker{sessions: []*assignee{{}, {}}, metrics: NewMetrics(prometheus.NewRegistry())}
					cfg := testConfig(c, nil)
					cfg.NewHandler = func(n int) (pipeline.Handler, error) { return w.sessions[n], nil }
					cfg.Instance, cfg.Sessions, cfg.Guarantee, cfg.Protocol, cfg.Metrics = name, 2, guarantee, protocol, w.metrics
					_, w.stop = start(t, cfg)
					workers = append(workers, w)
				}
				settled := func() bool {
					var all []int32
					sum := 0.0
					for _, w := range workers {
						mine := 0
						for _, s := range w.sessions {
							ps := s.partitions()
							all, mine = append(all, ps...), mine+len(ps)
						}
						if mine == 0 {
							return false
						}
						sum += assignedGauge(t, w.metrics)
					}
					slices.Sort(all)
					return len(all) == partitions && len(slices.Compact(all)) == partitions && sum == partitions
				}
				begin("a")
				waitFor(t, settled)
				begin("b")
				waitFor(t, settled)
				begin("c")
				waitFor(t, settled)
				last := workers[1]
				workers = slices.Delete(workers, 1, 2)
				if err := last.stop(); err != nil {
					t.Error(err)
				}
				waitFor(t, settled)
			})
		}
	}
}

// assignedGauge returns the value of millrace_assigned_partitions.
func assignedGauge(t *testing.T, m *Metrics) float64 {
	t.Helper()
	return testutil.ToFloat64(m.assigned.WithLabelValues("g"))
}
