package store

import (
	"github.com/cockroachdb/pebble/v2"
	"github.com/prometheus/client_golang/prometheus"
)

// Register registers the store's metrics. They are 0 once it is closed.
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
			Name: "millrace_store_bytes",
			Help: "Size of the store on the disk.",
		}, of(func(m *pebble.Metrics, _ *pebble.LevelMetrics) float64 { return float64(m.DiskSpaceUsage()) })),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "millrace_store_tables",
			Help: "Tables in the store.",
		}, of(func(_ *pebble.Metrics, all *pebble.LevelMetrics) float64 { return float64(all.TablesCount) })),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "millrace_store_compaction_debt_bytes",
			Help: "How much is to be compacted yet, about. If it only ever grows, the disk or the cores do not keep up with what is written.",
		}, of(func(m *pebble.Metrics, _ *pebble.LevelMetrics) float64 { return float64(m.Compact.EstimatedDebt) })),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "millrace_store_read_tables",
			Help: "How many tables one read may have to look into.",
		}, of(func(m *pebble.Metrics, _ *pebble.LevelMetrics) float64 { return float64(m.ReadAmp()) })),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "millrace_store_memory_bytes",
			Help: "Memory that the store takes beside the Go heap: cached blocks, and what is not in tables yet.",
		}, of(func(m *pebble.Metrics, _ *pebble.LevelMetrics) float64 {
			return float64(m.BlockCache.Size) + float64(m.MemTable.Size) + float64(m.MemTable.ZombieSize)
		})),
		prometheus.NewCounterFunc(prometheus.CounterOpts{
			Name: "millrace_store_cache_hits_total",
			Help: "Blocks that were read from memory.",
		}, of(func(m *pebble.Metrics, _ *pebble.LevelMetrics) float64 { return float64(m.BlockCache.Hits) })),
		prometheus.NewCounterFunc(prometheus.CounterOpts{
			Name: "millrace_store_cache_misses_total",
			Help: "Blocks that were read from the disk.",
		}, of(func(m *pebble.Metrics, _ *pebble.LevelMetrics) float64 { return float64(m.BlockCache.Misses) })),
		prometheus.NewCounterFunc(prometheus.CounterOpts{
			Name: "millrace_store_ingested_bytes_total",
			Help: "Written as tables that the store took in as they were.",
		}, of(func(_ *pebble.Metrics, all *pebble.LevelMetrics) float64 { return float64(all.TableBytesIngested) })),
		prometheus.NewCounterFunc(prometheus.CounterOpts{
			Name: "millrace_store_flushed_bytes_total",
			Help: "Written from memory to tables.",
		}, of(func(_ *pebble.Metrics, all *pebble.LevelMetrics) float64 { return float64(all.TableBytesFlushed) })),
		prometheus.NewCounterFunc(prometheus.CounterOpts{
			Name: "millrace_store_compacted_bytes_total",
			Help: "Written by compactions. Over what was ingested and flushed: how often an entry is written again.",
		}, of(func(_ *pebble.Metrics, all *pebble.LevelMetrics) float64 { return float64(all.TableBytesCompacted) })),
	)
}
