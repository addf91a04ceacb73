package gauges_test

import (
	"errors"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"millrace/pipeline/kafka/gauges"
)

func TestFollowingIsZeroWhileThereIsAnError(t *testing.T) {
	var err error
	reg := prometheus.NewPedanticRegistry()
	reg.MustRegister(
		gauges.Following("table a", "rows", func() error { return err }),
		gauges.Following("table b", "rows", func() error { return nil }), // two tables of one topic
	)
	for _, want := range []float64{1, 0, 1} {
		if got := testutil.ToFloat64(gauges.Following("keys", "k", func() error { return err })); got != want {
			t.Errorf("%v with the error %v", got, err)
		}
		if n, bad := testutil.GatherAndCount(reg, "millrace_following"); n != 2 || bad != nil {
			t.Errorf("%d metrics: %v", n, bad)
		}
		if err == nil {
			err = errors.New("no broker answers")
		} else {
			err = nil
		}
	}
}
