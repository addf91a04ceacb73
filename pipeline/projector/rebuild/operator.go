// Package rebuild holds the commands that an operator runs on the versions of projections:
// rebuild, status, diff, promote, rollback, retire and forget. They read and write the
// control topic, and query workers over their internal HTTP API.
//
// Start reading at [Commands]. Each command runs in one goroutine and shares nothing.
package rebuild

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"millrace/pipeline/cli"
	"millrace/pipeline/projector/control"
	"millrace/pipeline/server/dial"
	"millrace/pipeline/topology"
	"millrace/pipeline/worker"
)

// Commands returns the commands of this package.
func Commands(e *cli.Env) []*cobra.Command {
	return []*cobra.Command{
		rebuildCommand(e), statusCommand(e), diffCommand(e), promoteCommand(e), rollbackCommand(e), retireCommand(e), forgetCommand(e),
	}
}

// operator holds the flags that all commands share.
type operator struct {
	env    *cli.Env
	remote *worker.RemoteFlags
	json   bool
}

func newOperator(e *cli.Env, flags *pflag.FlagSet) *operator {
	o := &operator{env: e, remote: worker.AddRemoteFlags(e, flags)}
	o.remote.AddDialFlags(flags)
	flags.BoolVar(&o.json, "json", false, "print JSON")
	return o
}

// open connects to Kafka and reads the control topic.
func (o *operator) open(ctx context.Context) (*worker.Worker, *control.State, error) {
	w, err := o.remote.Open()
	if err != nil {
		return nil, nil, err
	}
	if err := w.Kafka.Ping(ctx); err != nil {
		return nil, nil, err
	}
	state, err := control.ReadState(ctx, w.Kafka, control.Topic(w.Topology))
	return w, state, err
}

// projection does what open does, and returns the projection with the name. The projection
// has a live version.
func (o *operator) projection(ctx context.Context, name string) (*worker.Worker, *control.State, *topology.Projection, error) {
	w, state, err := o.open(ctx)
	if err != nil {
		return nil, nil, nil, err
	}
	i := slices.IndexFunc(w.Topology.Projections, func(p *topology.Projection) bool { return p.Name == name })
	if i < 0 {
		return nil, nil, nil, cli.Usagef("the topology has no projection %s", name)
	}
	if err := state.Newer(name); err != nil {
		return nil, nil, nil, fmt.Errorf("projection %s: %w", name, err)
	}
	if _, ok := state.Live[name]; !ok {
		return nil, nil, nil, fmt.Errorf("no worker has run projection %s yet: start `projector run` first", name)
	}
	return w, state, w.Topology.Projections[i], nil
}

// newest returns the newest version of a projection if it is not live.
func newest(state *control.State, name string) (control.VersionRecord, error) {
	numbers := state.Numbers(name)
	if n := numbers[len(numbers)-1]; n != state.Live[name].Version {
		return state.Versions[name][n], nil
	}
	return control.VersionRecord{}, fmt.Errorf("projection %s has no version newer than %d, which is live: build one with `projector rebuild %s`", name, state.Live[name].Version, name)
}

// write writes records to the control topic.
func (o *operator) write(ctx context.Context, w *worker.Worker, records ...control.Record) error {
	return control.WriteRecords(ctx, w.Kafka, control.Topic(w.Topology), o.env.Now(), records...)
}

const (
	dialTimeout   = 5 * time.Second // for a connection to a worker
	workerTimeout = time.Minute     // for the first byte of an answer, and for an erasure by all workers
)

// errNotYet is the answer of a worker that has not read the necessary control record yet.
var errNotYet = errors.New("the worker has not read the control record yet")

// getWorker requests a path from a worker and passes the body of the answer to read.
func getWorker(ctx context.Context, call *dial.Caller, addr, path string, read func(io.Reader) error) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, call.URL(addr, path), nil)
	if err != nil {
		return err
	}
	client := http.Client{Transport: call.Transport(&http.Transport{DisableKeepAlives: true, DialContext: (&net.Dialer{Timeout: dialTimeout}).DialContext, ResponseHeaderTimeout: workerTimeout})}
	resp, err := client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode == http.StatusConflict {
		return errNotYet
	}
	if err := dial.StatusError(resp); err != nil {
		return &statusError{fmt.Errorf("%s answers %w", addr, err)}
	}
	return read(resp.Body)
}

// statusError is an answer with an error.
type statusError struct{ error }

// reachable reports whether a worker answers at all.
func reachable(ctx context.Context, call *dial.Caller, addr string) bool {
	err := getWorker(ctx, call, addr, "/version", func(io.Reader) error { return nil })
	var status *statusError
	return err == nil || errors.As(err, &status)
}
