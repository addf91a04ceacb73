package worker

import (
	"context"

	"github.com/prometheus/client_golang/prometheus"
)

// reportSchemas shows the schemas that the registry does not give, in /readyz and as
// metrics. They are no condition of readiness: records with other schemas continue.
func (w *Worker) reportSchemas() {
	w.Server.Report("schemas", func(context.Context) error { return w.Registry.Missing().Err() })
	w.Metrics.MustRegister(
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "millrace_schemas_unknown", Help: "Schemas that records name and the registry does not have, in the last ten minutes. /readyz?verbose has their ids.",
		}, func() float64 { return float64(len(w.Registry.Missing().Unknown)) }),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "millrace_schemas_waiting", Help: "Schemas that the registry has been asked for, for longer than a second. Records with them wait.",
		}, func() float64 { return float64(len(w.Registry.Missing().Waiting)) }))
}
