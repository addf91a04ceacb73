package kafka

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"

	"millrace/pipeline"
)

// CommandPatience is the [Config.Patience] of commands that make a few requests and end.
const CommandPatience = 30 * time.Second

// starting are the errors of a cluster in which a broker has just started: a coordinator or
// a leader does not exist yet. The client repeats only some of the requests.
var starting = []error{
	kerr.CoordinatorNotAvailable, kerr.CoordinatorLoadInProgress, kerr.NotCoordinator,
	kerr.LeaderNotAvailable, kerr.NotLeaderForPartition, kerr.ReplicaNotAvailable, kerr.BrokerNotAvailable,
	kerr.NotController, kerr.UnknownLeaderEpoch, kerr.FencedLeaderEpoch,
}

// isStarting reports whether an error of requests may disappear when the cluster has started.
func isStarting(err error) bool {
	if pipeline.ClassOf(err) == pipeline.ClassFatal {
		return false // something else must be corrected, too
	}
	for _, one := range starting {
		if errors.Is(err, one) {
			return true
		}
	}
	return false
}

// patiently calls f until it succeeds, or fails with another error than that the cluster is
// still starting, at most for [Config.Patience]. f must have the same effect if it is called
// again.
func patiently(ctx context.Context, cfg Config, f func() error) error {
	began, wait := time.Now(), minBackoff
	for {
		err := f()
		if err == nil || cfg.Patience == 0 || !isStarting(err) {
			return err
		}
		waited := time.Since(began)
		if waited+wait > cfg.Patience || ctx.Err() != nil {
			return fmt.Errorf("%w; waited %v for the brokers to start", err, waited.Round(time.Millisecond))
		}
		if cfg.Logger != nil && wait == minBackoff {
			cfg.Logger.Warn("the brokers are still starting; trying again", "err", err, "patience", cfg.Patience.String())
		}
		wait = sleep(ctx, wait)
	}
}
