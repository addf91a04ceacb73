package gauges

import "github.com/prometheus/client_golang/prometheus"

// Following returns a metric that is 1 while err returns nil. follower is the name of the
// check in /readyz that shows the error.
func Following(follower, topic string, err func() error) prometheus.Collector {
	return prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name:        "millrace_following",
		Help:        "1 while a topic of keys, receipts or rows is followed, 0 while it cannot be read. /readyz?verbose has the reason under the follower's name.",
		ConstLabels: prometheus.Labels{"follower": follower, "topic": topic},
	}, func() float64 {
		if err() != nil {
			return 0
		}
		return 1
	})
}
