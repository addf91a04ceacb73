package kafka

import (
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// Metrics are the metrics of the loops and followers of a process. A nil *Metrics
// records nothing.
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
	unread       *prometheus.CounterVec
}

// NewMetrics returns Metrics registered with reg.
func NewMetrics(reg prometheus.Registerer) *Metrics {
	m := &Metrics{
		transactions: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "millrace_txn_total",
			Help: "Batches ended, by result: committed, aborted (rolled back and retried) or failed (the session got a new client).",
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
				Help: "Lag: offsets between the committed position and the end of the log (the last stable offset); 0 when everything is read.",
			}, []string{"group", "topic", "partition"}),
			seconds: prometheus.NewGaugeVec(prometheus.GaugeOpts{
				Name: "millrace_consumer_lag_seconds",
				Help: "Age of the last committed record, by its timestamp, while there is a lag; the time since the assignment if none was read yet; 0 without a lag.",
			}, []string{"group", "topic", "partition"}),
		},
		followed: &lagAtScrape{
			records: prometheus.NewGaugeVec(prometheus.GaugeOpts{
				Name: "millrace_followed_lag_records",
				Help: "Lag in a followed partition, which is read without a group: offsets between the position and the end of the log. One series per followed partition.",
			}, []string{"group", "topic", "partition"}),
			seconds: prometheus.NewGaugeVec(prometheus.GaugeOpts{
				Name: "millrace_followed_lag_seconds",
				Help: "Age of the last record read from a followed partition, by its timestamp, while there is a lag; the time since it is followed if none was read yet; 0 without a lag.",
			}, []string{"group", "topic", "partition"}),
		},
		assigned: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "millrace_assigned_partitions",
			Help: "Partitions that the group has assigned to this worker.",
		}, []string{"group"}),
		rebalances: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "millrace_rebalances_total",
			Help: "Changes of this worker's partitions by the group, by kind: assigned, revoked or lost.",
		}, []string{"group", "kind"}),
		read: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "millrace_records_in_total",
			Help: "Input records of committed batches.",
		}, []string{"group"}),
		written: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "millrace_records_out_total",
			Help: "Records written by committed batches, by topic.",
		}, []string{"group", "topic"}),
		unread: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "millrace_unread_offsets_total",
			Help: "Offsets that retention deleted before the group read them, and that --accept-loss skipped.",
		}, []string{"group", "topic"}),
	}
	reg.MustRegister(m.transactions, m.duration, m.records, m.lag, m.followed, m.assigned, m.rebalances, m.read, m.written, m.unread)
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

// watch adds a loop to the lag metrics, until unwatch is called.
func (m *Metrics) watch(group string, p *progress) (unwatch func()) {
	if m == nil {
		return func() {}
	}
	return m.lag.watch(group, p)
}

// follows adds a follower to its lag metrics, until unwatch is called.
func (m *Metrics) follows(group string, p *progress) (unwatch func()) {
	if m == nil {
		return func() {}
	}
	return m.followed.watch(group, p)
}

// lagAtScrape computes the lag at scrape time. So the lag in seconds of a loop that
// hangs keeps growing.
type lagAtScrape struct {
	records, seconds *prometheus.GaugeVec

	mu    sync.Mutex // guards loops
	loops []loopProgress
}

type loopProgress struct {
	group string
	*progress
}

func (l *lagAtScrape) watch(group string, p *progress) (unwatch func()) {
	l.mu.Lock()
	defer l.mu.Unlock()
	one := loopProgress{group, p}
	l.loops = append(l.loops, one)
	return func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		l.loops = slices.DeleteFunc(l.loops, func(other loopProgress) bool { return other == one })
	}
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
	now := time.Now()
	l.records.Reset()
	l.seconds.Reset()
	for _, loop := range l.loops {
		for _, at := range loop.all() {
			labels := []string{loop.group, at.Topic, strconv.Itoa(int(at.Partition))}
			l.records.WithLabelValues(labels...).Set(float64(at.Lag()))
			l.seconds.WithLabelValues(labels...).Set(at.Age(now).Seconds())
		}
	}
	l.records.Collect(out)
	l.seconds.Collect(out)
}

func (m *Metrics) rebalanced(group, kind string) {
	if m == nil {
		return
	}
	m.rebalances.WithLabelValues(group, kind).Inc()
}

// lost counts offsets that were deleted unread.
func (m *Metrics) lost(group, topic string, n int64) {
	if m == nil {
		return
	}
	m.unread.WithLabelValues(group, topic).Add(float64(n))
}

// hold adds to the number of partitions that the sessions hold.
func (m *Metrics) hold(group string, delta int) {
	if m == nil {
		return
	}
	m.assigned.WithLabelValues(group).Add(float64(delta))
}
