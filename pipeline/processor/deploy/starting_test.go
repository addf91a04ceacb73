package deploy_test

import (
	"sync/atomic"
	"testing"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"

	"millrace/pipeline/cli"
	"millrace/pipeline/harness"
	"millrace/pipeline/processor/processortest"
)

// A broker that has just started has no coordinators yet. plan and apply wait for them and
// say so.
func TestPlanAndApplyWaitForABrokerThatIsStarting(t *testing.T) {
	b := processortest.NewBench(t, processortest.ReceiptsTopology)
	file := b.File(processortest.ReceiptsTopology)
	var left atomic.Int64
	b.Broker.ControlKey(int16(kmsg.FindCoordinator), func(req kmsg.Request) (kmsg.Response, error, bool) {
		b.Broker.KeepControl()
		if left.Add(-1) < 0 {
			return nil, nil, false
		}
		asked := req.(*kmsg.FindCoordinatorRequest)
		resp := asked.ResponseKind().(*kmsg.FindCoordinatorResponse)
		for _, key := range asked.CoordinatorKeys {
			one := kmsg.NewFindCoordinatorResponseCoordinator()
			one.Key, one.ErrorCode = key, kerr.CoordinatorNotAvailable.Code
			resp.Coordinators = append(resp.Coordinators, one)
		}
		return resp, nil, true
	})
	for _, command := range []string{"plan", "apply"} {
		left.Store(2)
		code, out := b.Processor(file, command)
		if code != cli.ExitOK {
			t.Errorf("%s: exit code %d: %s", command, code, out)
		}
		harness.WantLines(t, out, "the brokers are still starting; trying again")
	}
}
