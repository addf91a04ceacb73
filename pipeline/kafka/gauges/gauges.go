// Package gauges has metrics of Kafka clients: it gives those of a client names that fit their
// types, and shows whether a topic is followed.
package gauges

import (
	"strings"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/twmb/franz-go/pkg/kgo"
)

// renamedGauges is a collector of the metrics of a client. It replaces two gauges whose
// names end in _total, like those of counters: tools show the rate of such a metric.
type renamedGauges struct {
	all    prometheus.Collector
	hidden map[*prometheus.Desc]bool // never changed
	own    []prometheus.Collector
}

// Renamed returns the metrics of a client, with new names for two gauges.
func Renamed(all prometheus.Collector, cl *kgo.Client) prometheus.Collector {
	g := &renamedGauges{all: all, hidden: map[*prometheus.Desc]bool{}, own: []prometheus.Collector{
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "millrace_kafka_buffered_produce_records", Help: "Records that the client has buffered for writing."},
			func() float64 { return float64(cl.BufferedProduceRecords()) }),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "millrace_kafka_buffered_fetch_records", Help: "Records that the client has read in advance."},
			func() float64 { return float64(cl.BufferedFetchRecords()) }),
	}}
	for d := range through(all.Describe) {
		g.hidden[d] = strings.Contains(d.String(), "_records_total") && strings.Contains(d.String(), "_buffered_")
	}
	return g
}

// Describe implements [prometheus.Collector].
func (g *renamedGauges) Describe(out chan<- *prometheus.Desc) {
	for _, own := range g.own {
		own.Describe(out)
	}
	for d := range through(g.all.Describe) {
		if !g.hidden[d] {
			out <- d
		}
	}
}

// Collect implements [prometheus.Collector].
func (g *renamedGauges) Collect(out chan<- prometheus.Metric) {
	for _, own := range g.own {
		own.Collect(out)
	}
	for m := range through(g.all.Collect) {
		if !g.hidden[m.Desc()] {
			out <- m
		}
	}
}

// through returns what f sends. f runs until the channel is read to its end.
func through[T any](f func(chan<- T)) <-chan T {
	c := make(chan T)
	go func() {
		defer close(c)
		f(c)
	}()
	return c
}
