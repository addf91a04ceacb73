package projector

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"slices"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"

	"millrace/pipeline/event"
	"millrace/pipeline/kafka"
	"millrace/pipeline/keyring"
	"millrace/pipeline/projector/control"
	"millrace/pipeline/projector/measure"
	"millrace/pipeline/receipt"
	"millrace/pipeline/store"
	"millrace/pipeline/topology"
	"millrace/pipeline/worker"
)

// program is the parts of a worker. All fields are immutable.
type program struct {
	command    *runCommand
	w          *worker.Worker
	control    *control.Follower
	keys       *keyring.Ring // nil if nothing is encrypted
	receipts   *receipt.Reader
	restores   *restores
	announcer  *announcer
	supervisor *supervisor
	internal   *internalAPI
	readiness  *readiness
}

// assemble makes the parts of a worker. answer takes the handler that answers questions
// from then on.
func (c *runCommand) assemble(w *worker.Worker, kept *store.Store, keys *keyring.Ring, answer func(http.Handler)) *program {
	follower := control.NewFollower(w.Kafka, control.Topic(w.Topology))
	follower.Log = w.Log
	w.Metrics.MustRegister(
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "millrace_control_unreadable_records", Help: "Keys of the control topic whose last record is not understood, and is skipped."},
			func() float64 { return float64(follower.Unreadable()) }),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "millrace_control_following", Help: "1 while the control topic is followed, 0 while it is not."}, func() float64 {
			if follower.Ready() != nil {
				return 0
			}
			return 1
		}))
	running := prometheus.NewGaugeVec(prometheus.GaugeOpts{
		Name: "millrace_projection_running", Help: "1 while a projection runs here, 0 while it cannot start. /readyz?verbose has the reason.",
	}, []string{"projection"})
	w.Metrics.MustRegister(running)
	restores := newRestores(w.Metrics, w.Log.With(slog.String("part", "restore")))
	r := newRoster()
	others := &peers{
		instance: w.Flags.Instance, replica: c.options.replica, control: follower,
		caller:    w.Dial,
		transport: w.Dial.Transport(&http.Transport{MaxIdleConnsPerHost: 64, IdleConnTimeout: time.Minute, DisableCompression: true, DialContext: (&net.Dialer{Timeout: peerTimeout}).DialContext}),
	}
	ready := &readiness{roster: r, restores: restores, control: follower, began: time.Now()}
	a := &announcer{
		kafka: w.Kafka, topic: follower.Topic, instance: w.Flags.Instance, roster: r, replica: c.options.replica, log: w.Log,
		address: func() string { return addressOf(c.options.advertise, w.Server.Addr()) }, epoch: ready.began.UnixNano(), moved: make(chan struct{}, 1),
	}
	receipts := c.receiptReader(w)
	b := &builder{
		options: c.options, w: w, store: kept, keys: keys, metrics: measure.NewMetrics(w.Metrics), loops: kafka.NewMetrics(w.Metrics),
		restores: restores, receipts: receipts, peers: others, announcer: a, drift: event.NewDrift(w.Log),
		ran: &ranTopics{names: map[string]bool{}},
	}
	return &program{
		command: c, w: w, control: follower, keys: keys, receipts: receipts, restores: restores, announcer: a, readiness: ready,
		supervisor: &supervisor{
			w: w, running: running, store: kept, control: follower, roster: r, builder: b, peers: others, announcer: a, restores: restores, ended: make(chan *groupLoop),
			forwarder: &forwarder{peers: others, roster: r, ready: ready.ready}, answer: answer, replica: c.options.replica, told: map[string]string{}, caughtUp: map[string]bool{}, left: map[string]bool{},
			define: func(pr *topology.Projection, n int) (control.VersionRecord, error) {
				return NewVersion(c.env, c.worker.Topology, w.Topology, pr, n)
			},
		},
		internal: &internalAPI{roster: r, replica: c.options.replica, keys: keys, log: w.Log},
	}
}

// receiptReader returns the reader of the receipts of pipelines.
func (c *runCommand) receiptReader(w *worker.Worker) *receipt.Reader {
	var topics []*topology.Topic
	if c.options.receipts > 0 {
		topics = receipt.Topics(w.Topology)
	}
	r := receipt.NewReader(w.Kafka, topics, c.options.receipts, c.env.Now, w.Log.With(slog.String("part", "receipts")), w.Metrics)
	r.Ensure = func(ctx context.Context) error {
		_, err := ensureTopics(ctx, w, c.options.replica, topics)
		return err
	}
	return r
}

// run runs the worker until the context ends, or a live version cannot continue.
func (p *program) run(ctx context.Context) error {
	if up, err := p.w.BringUp(ctx, p.begin); !up {
		return err
	}
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error {
		return p.control.Run(ctx, func(err error) { p.w.Log.Warn("cannot follow the control topic; trying again", "err", err) })
	})
	if p.keys != nil {
		g.Go(func() error { return p.keys.Run(ctx) })
	}
	g.Go(func() error { return p.announcer.run(ctx) })
	g.Go(func() error { return p.restores.run(ctx) })
	g.Go(func() error { return p.compactWhenReady(ctx) })
	g.Go(func() error { return p.receipts.Run(ctx) })
	g.Go(func() error {
		select {
		case <-ctx.Done():
			return nil
		case <-p.control.Tail.Loaded():
		}
		if p.keys != nil && p.keys.Loaded(ctx) != nil {
			return nil // the context has ended
		}
		return p.supervisor.run(ctx)
	})
	return g.Wait()
}

// compactWhenReady lets the store compact once the worker is ready: until then, it would take
// time from the start.
func (p *program) compactWhenReady(ctx context.Context) error {
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for p.readiness.ready() != nil || p.readiness.joined() != nil {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
	p.supervisor.store.Compact()
	return nil
}

// compare logs if the topology defines a projection otherwise than its live version.
func (p *program) compare(state *control.State, pr *topology.Projection) {
	live := state.Live[pr.Name].Version
	for _, n := range slices.Backward(state.Numbers(pr.Name)) {
		record := state.Versions[pr.Name][n]
		if same := pr.Fold.WithHash(record.Hash()); same != nil {
			if same != pr.Fold && n == live {
				p.w.Log.Info("the live version of the projection has the meaning of an earlier release, and continues with it. `projector rebuild` makes a version with the meaning of this release", "projection", pr.Name, "version", n, "semantics", same.Semantics())
			}
			if n != live {
				p.w.Log.Info("the topology defines a version of the projection that is not live", "projection", pr.Name, "version", n, "live", live)
			}
			return
		}
	}
	p.w.Log.Warn("the topology defines the projection otherwise than each of its versions; the live version continues. `projector rebuild` makes a new version", "projection", pr.Name, "live", live)
}

// awaitVersions fails until workers of the group have written what a replica needs: a
// replica does not write it.
func (p *program) awaitVersions(ctx context.Context) error {
	state, err := control.ReadState(ctx, p.w.Kafka, p.control.Topic)
	if err != nil {
		return err
	}
	for _, pr := range p.w.Topology.Projections {
		if state.Newer(pr.Name) != nil {
			continue // the supervisor shows it
		}
		if _, ok := state.Live[pr.Name]; !ok {
			return fmt.Errorf("projection %s has no version yet: a replica waits until a worker of the group has started with it (projector run without --replica)", pr.Name)
		}
		p.compare(state, pr)
	}
	if p.keys != nil {
		_, err = ensureTopics(ctx, p.w, true, []*topology.Topic{keyring.Topic(p.w.Topology)})
	}
	return err
}

// ensureTopics makes sure that topics exist. For a replica, it fails until they do.
func ensureTopics(ctx context.Context, w *worker.Worker, replica bool, topics []*topology.Topic) (kafka.Cluster, error) {
	if !replica {
		return w.EnsureTopics(ctx, topics)
	}
	var names []string
	for _, t := range topics {
		names = append(names, t.Name)
	}
	have, err := kafka.Describe(ctx, w.Kafka, names, nil, nil)
	if err != nil {
		return kafka.Cluster{}, err
	}
	for _, name := range names {
		if _, ok := have.Topics[name]; !ok && have.Hidden[name] == nil {
			return kafka.Cluster{}, fmt.Errorf("topic %s does not exist yet: a replica waits until a worker of the group has created it", name)
		}
	}
	return kafka.EnsureTopics(ctx, w.Kafka, worker.TopicSpecs(topics...), false)
}
