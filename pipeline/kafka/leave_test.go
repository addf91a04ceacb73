package kafka

import (
	"fmt"
	"testing"
	"time"

	"millrace/pipeline"
)

// A static member that stops leaves its group, so the others get its partitions at once. So
// it does not have to wait for the session timeout.
func TestAStaticMemberThatStopsLeavesTheGroup(t *testing.T) {
	for _, guarantee := range []Guarantee{ExactlyOnce, AtLeastOnce} {
		for _, protocol := range []GroupProtocol{ClassicProtocol, ConsumerProtocol} {
			t.Run(fmt.Sprintf("%s, %s", guarantee, protocol), func(t *testing.T) {
				t.Parallel()
				c := newCluster(t, 4, fastHeartbeats)
				inject(t, c, 0, 100)
				workers := map[string]*assignee{}
				begin := func(name string) func() error {
					h := &assignee{}
					workers[name] = h
					cfg := testConfig(c, nil)
					cfg.NewHandler = func(int) (pipeline.Handler, error) { return h, nil }
					cfg.Instance, cfg.Static, cfg.Guarantee, cfg.Protocol = name, true, guarantee, protocol
					cfg.SessionTimeout = 4 * time.Minute
					_, stop := start(t, cfg)
					return stop
				}
				begin("a")
				stop := begin("b")
				waitFor(t, func() bool { return len(workers["a"].partitions()) == 2 && len(workers["b"].partitions()) == 2 })
				if err := stop(); err != nil {
					t.Error(err)
				}
				waitFor(t, func() bool { return len(workers["a"].partitions()) == 4 })
				begin("b")
				waitFor(t, func() bool { return len(workers["a"].partitions()) == 2 && len(workers["b"].partitions()) == 2 })
			})
		}
	}
}
