package store

import (
	"time"

	"github.com/cockroachdb/pebble/v2"
	"github.com/prometheus/client_golang/prometheus"
)

// Register registers the store's metrics. They are 0 after [Store.Close], because a
// scrape may come later.
func (s *Store) Register(reg prometheus.Registerer) {
	of := func(f func(m *pebble.Metrics, all *pebble.LevelMetrics) float64) func() float64 {
		return func() float64 {
			s.mu.Lock()
			defer s.mu.Unlock()
			if s.closed {
				return 0
			}
			m := s.db.Metrics()
			all := m.Total()
			return f(m, &all)
		}
	}
	reg.MustRegister(
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "millrace_store_waiting_seconds",
			Help: "How long the store has been waiting for its disk to accept writes; 0 if it does not wait.",
		}, func() float64 {
			since, err := s.Waiting()
			if err == nil {
				return 0
			}
			return time.Since(since).Seconds()
		}),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "millrace_store_bytes",
			Help: "Size of the store on disk.",
		}, of(func(m *pebble.Metrics, _ *pebble.LevelMetrics) float64 { return float64(m.DiskSpaceUsage()) })),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "millrace_store_tables",
			Help: "Number of tables in the store.",
		}, of(func(_ *pebble.Metrics, all *pebble.LevelMetrics) float64 { return float64(all.TablesCount) })),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "millrace_store_compaction_debt_bytes",
			Help: "Estimated bytes that wait for compaction. If it keeps growing, the disk or the CPU cannot keep up with the writes.",
		}, of(func(m *pebble.Metrics, _ *pebble.LevelMetrics) float64 { return float64(m.Compact.EstimatedDebt) })),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "millrace_store_read_tables",
			Help: "Maximum number of tables that one read has to search.",
		}, of(func(m *pebble.Metrics, _ *pebble.LevelMetrics) float64 { return float64(m.ReadAmp()) })),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "millrace_store_memory_bytes",
			Help: "Memory of the store outside the Go heap: block cache and memtables.",
		}, of(func(m *pebble.Metrics, _ *pebble.LevelMetrics) float64 {
			return float64(m.BlockCache.Size) + float64(m.MemTable.Size) + float64(m.MemTable.ZombieSize)
		})),
		prometheus.NewCounterFunc(prometheus.CounterOpts{
			Name: "millrace_store_cache_hits_total",
			Help: "Blocks read from the block cache.",
		}, of(func(m *pebble.Metrics, _ *pebble.LevelMetrics) float64 { return float64(m.BlockCache.Hits) })),
		prometheus.NewCounterFunc(prometheus.CounterOpts{
			Name: "millrace_store_cache_misses_total",
			Help: "Blocks read from disk.",
		}, of(func(m *pebble.Metrics, _ *pebble.LevelMetrics) float64 { return float64(m.BlockCache.Misses) })),
		prometheus.NewCounterFunc(prometheus.CounterOpts{
			Name: "millrace_store_ingested_bytes_total",
			Help: "Bytes written as tables that the store ingested without rewriting them.",
		}, of(func(_ *pebble.Metrics, all *pebble.LevelMetrics) float64 { return float64(all.TableBytesIngested) })),
		prometheus.NewCounterFunc(prometheus.CounterOpts{
			Name: "millrace_store_flushed_bytes_total",
			Help: "Bytes written from memtables to tables.",
		}, of(func(_ *pebble.Metrics, all *pebble.LevelMetrics) float64 { return float64(all.TableBytesFlushed) })),
		prometheus.NewCounterFunc(prometheus.CounterOpts{
			Name: "millrace_store_compacted_bytes_total",
			Help: "Bytes written by compactions. Divided by the sum of ingested and flushed bytes, it is how often an entry is rewritten.",
		}, of(func(_ *pebble.Metrics, all *pebble.LevelMetrics) float64 { return float64(all.TableBytesCompacted) })),
	)
}
