package projector

import (
	"context"
	"log/slog"
	"os"
	"sync"
	"time"

	"millrace/pipeline/cli"
	"millrace/pipeline/store"
)

// giveUpAfter is how long a worker that is stopped waits for its disk to accept writes.
const giveUpAfter = 10 * time.Second

// exitWithoutStore returns a function for [store.Options.Fatal]. It ends the process,
// because goroutines that end in order would wait for locks of the store. The store is in
// the state after some commit, as after a kill.
func exitWithoutStore(log *slog.Logger) func(error) {
	return func(err error) {
		log.Error("the store cannot continue; the process ends without leaving its groups, and the next start continues from the store", "err", err)
		cli.FlushLog(log)
		os.Exit(cli.ExitFailure) //nolint:forbidigo // deferred calls would wait for the store
	}
}

// giveUpWhenStopped lets the store give up its waits for the disk some time after ctx has
// ended. The caller must call stop when it has closed the store.
func giveUpWhenStopped(ctx context.Context, s *store.Store) (stop func()) {
	closed := make(chan struct{})
	var wait sync.WaitGroup
	wait.Go(func() {
		select {
		case <-closed:
			return
		case <-ctx.Done():
		}
		timer := time.NewTimer(giveUpAfter)
		defer timer.Stop()
		select {
		case <-closed:
		case <-timer.C:
			s.GiveUp()
		}
	})
	return func() {
		close(closed)
		wait.Wait()
	}
}
