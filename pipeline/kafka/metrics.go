package kafka

import (
	"strconv"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// Metrics counts what the loops of a process do. A nil *Metrics counts nothing.
type Metrics struct {
	transactions *prometheus.CounterVec
	duration     *prometheus.HistogramVec
	records      *prometheus.HistogramVec
	lag          *lagAtScrape
	followed     *lagAtScrape
	assigned     *prometheus.GaugeVec
	rebalances   *prometheus.CounterVec
	read         *prometheus.CounterVec
	written      *prometheus.CounterVec
}

// NewMetrics returns Metrics registered with reg.
func NewMetrics(reg prometheus.Registerer) *Metrics {
	m := &Metrics{
		transactions: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "millrace_txn_total",
			Help: "Batches ended, by result: committed, aborted (rolled back, tried again) or failed (the session was rebuilt).",
		}, []string{"group", "result"}),
		duration: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name:    "millrace_txn_duration_seconds",
			Help:    "Time from the first record of a batch to the end of its transaction.",
			Buckets: []float64{.01, .025, .05, .1, .15, .2, .3, .5, 1, 2.5, 5, 10},
		}, []string{"group"}),
		records: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name:    "millrace_txn_records",
			Help:    "Input records in a committed batch.",
			Buckets: prometheus.ExponentialBuckets(1, 4, 10),
		}, []string{"group"}),
		lag: &lagAtScrape{
			records: prometheus.NewGaugeVec(prometheus.GaugeOpts{
				Name: "millrace_consumer_lag_records",
				Help: "Offsets between the committed position and the last stable offset. Transaction markers that were passed do not count.",
			}, []string{"group", "topic", "partition"}),
			seconds: prometheus.NewGaugeVec(prometheus.GaugeOpts{
				Name: "millrace_consumer_lag_seconds",
				Help: "Age of the last record committed while more are waiting, by its timestamp; 0 when none wait.",
			}, []string{"group", "topic", "partition"}),
		},
		followed: &lagAtScrape{
			records: prometheus.NewGaugeVec(prometheus.GaugeOpts{
				Name: "millrace_followed_lag_records",
				Help: "Offsets that a partition which is followed, without a group, is behind its last stable offset. There is one for each partition that is followed.",
			}, []string{"group", "topic", "partition"}),
			seconds: prometheus.NewGaugeVec(prometheus.GaugeOpts{
				Name: "millrace_followed_lag_seconds",
				Help: "Age of the last record of a followed partition that was taken in while more are waiting, by its timestamp; 0 when none wait.",
			}, []string{"group", "topic", "partition"}),
		},
		assigned: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "millrace_assigned_partitions",
			Help: "Partitions that the group has given to this worker.",
		}, []string{"group"}),
		rebalances: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "millrace_rebalances_total",
			Help: "Times the group changed this worker's partitions, by kind: assigned, revoked or lost.",
		}, []string{"group", "kind"}),
		read: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "millrace_records_in_total",
			Help: "Input records of committed batches.",
		}, []string{"group"}),
		written: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "millrace_records_out_total",
			Help: "Records written by committed batches, by topic.",
		}, []string{"group", "topic"}),
	}
	reg.MustRegister(m.transactions, m.duration, m.records, m.lag, m.followed, m.assigned, m.rebalances, m.read, m.written)
	return m
}

func (m *Metrics) ended(group, result string, records int, took time.Duration, written []topicCount) {
	if m == nil {
		return
	}
	m.transactions.WithLabelValues(group, result).Inc()
	m.duration.WithLabelValues(group).Observe(took.Seconds())
	if result != "committed" {
		return
	}
	m.records.WithLabelValues(group).Observe(float64(records))
	m.read.WithLabelValues(group).Add(float64(records))
	for _, w := range written {
		m.written.WithLabelValues(group, w.topic).Add(float64(w.n))
	}
}

// watch adds a loop to those whose lag is shown.
func (m *Metrics) watch(group string, p *progress) {
	if m == nil {
		return
	}
	m.lag.watch(group, p)
}

// follows is watch for a follower.
func (m *Metrics) follows(group string, p *progress) {
	if m == nil {
		return
	}
	m.followed.watch(group, p)
}

// lagAtScrape is worked out when it is asked for: that of a loop that hangs grows.
type lagAtScrape struct {
	records, seconds *prometheus.GaugeVec

	mu    sync.Mutex
	loops []loopProgress
}

type loopProgress struct {
	group string
	*progress
}

func (l *lagAtScrape) watch(group string, p *progress) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.loops = append(l.loops, loopProgress{group, p})
}

// Describe implements [prometheus.Collector].
func (l *lagAtScrape) Describe(out chan<- *prometheus.Desc) {
	l.records.Describe(out)
	l.seconds.Describe(out)
}

// Collect implements [prometheus.Collector].
func (l *lagAtScrape) Collect(out chan<- prometheus.Metric) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.records.Reset()
	l.seconds.Reset()
	for _, loop := range l.loops {
		for _, at := range loop.all() {
			labels := []string{loop.group, at.Topic, strconv.Itoa(int(at.Partition))}
			age := 0.0
			if at.Lag() > 0 && !at.last.IsZero() {
				// A record stamped in the future is not less than no lag.
				age = max(0, time.Since(at.last).Seconds())
			}
			l.records.WithLabelValues(labels...).Set(float64(at.Lag()))
			l.seconds.WithLabelValues(labels...).Set(age)
		}
	}
	l.records.Collect(out)
	l.seconds.Collect(out)
}

func (m *Metrics) rebalanced(group, kind string, delta int) {
	if m == nil {
		return
	}
	m.rebalances.WithLabelValues(group, kind).Inc()
	m.assigned.WithLabelValues(group).Add(float64(delta))
}
