package demo

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"millrace/pipeline/cli"
	"millrace/pipeline/kafka"
	"millrace/pipeline/kafka/admin"
	"millrace/pipeline/sandbox"
	"millrace/pipeline/worker"
)

// Names in the shop's topology.
const (
	demoEvents      = "shop.events"
	demoEnriched    = "shop.enriched"
	demoDeadLetters = "shop.dead_letters"
	demoProcessors  = "shop-enrich" // consumer group
	demoProjectors  = "shop-projector"
)

// defaultListen holds the default addresses of the programs.
var defaultListen = map[string]string{"processor": worker.ProcessorListen, "projector": worker.ProjectorListen}

const (
	pollInterval   = 50 * time.Millisecond // of the progress
	sessionTimeout = 6 * time.Second       // the lowest that brokers accept; a killed worker's partitions wait this long
	startTimeout   = time.Minute           // for a program to be ready
	stopTimeout    = 30 * time.Second      // for a program to stop
	keptOutput     = 16 << 10              // bytes kept of a program's output
)

// demo runs all of Millrace as a user would: a sandbox in this process, and producer,
// processor and projector as child processes. The goroutine of the command owns it.
type demo struct {
	env      *cli.Env
	bin      string // directory of the programs
	topology string
	dial     *worker.DialFlags        // how the programs are called, if their environment gives them TLS and callers
	logLevel string                   // of the programs
	show     bool                     // print the output of the programs
	listen   func(addr string) string // returns the address to use instead of a default one

	events  string // path of JSON lines to send; "" sends synthetic events
	count   int    // of synthetic events
	seed    uint64
	brokers []string // of an external cluster; after start, also those of the sandbox
	kill    bool     // kill -9 processor and projector while they work

	began    time.Time
	dir      string // temporary; removed by stop
	external bool   // the broker is not the sandbox's
	registry string // URL
	box      *sandbox.Sandbox
	workers  *workers // set by start
	children []*child // in the order of their start
}

// progress prints a step, with the time since the start.
func (d *demo) progress(format string, args ...any) {
	fmt.Fprintf(d.env.Stderr, "%6.1f s  %s\n", time.Since(d.began).Seconds(), fmt.Sprintf(format, args...))
}

// run does everything once and returns the report, which lists numbers that disagree. An
// error means that there is no report, or that a program did not stop correctly.
func (d *demo) run(ctx context.Context) (r *Report, err error) {
	d.began = time.Now()
	defer func() { err = errors.Join(err, d.stop()) }()
	if err := d.start(ctx); err != nil {
		return nil, err
	}
	if err := d.checkEmpty(ctx); err != nil {
		return nil, err
	}
	r = &Report{Disagreements: []string{}, Steps: steps{Start: time.Since(d.began).Seconds()}}
	if err := d.work(ctx, &r.Steps); err != nil {
		return nil, err
	}
	r.Seconds = max(r.Steps.Inject, r.Steps.Process, r.Steps.Project)
	d.progress("checking every event and every state")
	if err := d.check(ctx, r); err != nil {
		return nil, err
	}
	return r, nil
}

// checkEmpty returns an error if an external cluster has events already: the demo counts all
// events on the topics.
func (d *demo) checkEmpty(ctx context.Context) error {
	if !d.external {
		return nil
	}
	for _, topic := range []string{demoEvents, demoEnriched, demoDeadLetters} {
		n, err := d.countRecords(ctx, topic)
		if err != nil {
			return err
		}
		if n > 0 {
			return fmt.Errorf("topic %s of %s has %d records already, but the demo counts all records: delete the topics, or use another cluster",
				topic, strings.Join(d.brokers, ","), n)
		}
	}
	return nil
}

// work sends the events and waits until all are processed and folded. With --kill, it kills
// the programs meanwhile. It sets the times in s.
func (d *demo) work(ctx context.Context, s *steps) error {
	what := fmt.Sprintf("%s synthetic events", cli.GroupDigits(int64(d.count)))
	if d.events != "" {
		what = "the events of " + d.events
	}
	d.progress("sending %s", what)
	began := time.Now()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	sent := make(chan error, 1)
	go func() {
		err := d.send(ctx)
		if s.Inject = time.Since(began).Seconds(); err == nil {
			d.progress("all sent")
		}
		sent <- err
	}()
	awaitSent := func() error {
		err := <-sent
		sent <- err
		return err
	}
	if d.kill {
		if err := d.killAtWork(ctx, sent); err != nil {
			cancel()
			_ = awaitSent() // it was canceled because of err
			return err
		}
	}
	// The await below notices a child that dies. The producer does not depend on one.
	if err := awaitSent(); err != nil {
		return err
	}
	waiting := map[string]*float64{demoProcessors: &s.Process, demoProjectors: &s.Project}
	done := map[string]string{demoProcessors: "processed", demoProjectors: "folded"}
	return d.await(ctx, func() (bool, error) {
		for group, seconds := range waiting {
			lag, err := kafka.Lag(ctx, d.cluster(), group, demoEvents)
			if err != nil {
				return false, err
			}
			if lag == 0 {
				*seconds = time.Since(began).Seconds()
				d.progress("all %s", done[group])
				delete(waiting, group)
			}
		}
		return len(waiting) == 0, nil
	})
}

// send sends the events with the program producer, and waits for its end.
func (d *demo) send(ctx context.Context) error {
	args := []string{"send", d.events}
	if d.events == "" {
		args = []string{"generate", "--events", strconv.Itoa(d.count), "--seed", strconv.FormatUint(d.seed, 10)}
		if d.kill {
			// Spread the events over seconds, or a fast worker is done before it is killed.
			args = append(args, "--rate", "20000")
		}
	}
	c := &child{name: "producer", exited: make(chan struct{}), output: &tail{}, cmd: d.command("producer", args...)}
	c.cmd.Stdout, c.cmd.Stderr = c.output, c.output
	if err := c.cmd.Start(); err != nil {
		return fmt.Errorf("starting producer: %w", err)
	}
	go c.wait()
	select {
	case <-c.exited:
	case <-ctx.Done():
		return errors.Join(ctx.Err(), c.stop())
	}
	if c.err != nil {
		return c.exitError()
	}
	return nil
}

// killAtWork kills processor and projector with SIGKILL, each while it has committed some of
// the events but not all, and starts them again. sent has an element when all events are
// sent.
func (d *demo) killAtWork(ctx context.Context, sent <-chan error) error {
	victims := map[string]string{"processor": demoProcessors, "projector": demoProjectors}
	err := d.await(ctx, func() (bool, error) {
		for name, group := range victims {
			allSent := len(sent) > 0 // read before the lag, or events in between would count as done
			committed, err := admin.CommittedSum(ctx, d.cluster(), group)
			if err != nil {
				return false, err
			}
			lag, err := kafka.Lag(ctx, d.cluster(), group, demoEvents)
			switch {
			case err != nil:
				return false, err
			case lag == 0 && allSent:
				return false, fmt.Errorf("the %s was done before it could be killed: send more events", name)
			case committed == 0 || lag == 0:
				continue
			}
			if err := d.killNow(name); err != nil {
				return false, err
			}
			delete(victims, name)
		}
		return len(victims) == 0, nil
	})
	if err != nil {
		return err
	}
	for _, c := range d.children {
		if err := c.awaitReady(ctx); err != nil {
			return err
		}
		d.progress("%s ready again at %s", c.name, c.url)
	}
	return nil
}

func (d *demo) killNow(name string) error {
	c := d.child(name)
	if err := c.cmd.Process.Kill(); err != nil {
		return fmt.Errorf("killing the %s: %w", name, err)
	}
	<-c.exited
	d.progress("killed the %s while it worked", name)
	return d.spawn(name)
}

// cluster returns the configuration of Kafka clients.
func (d *demo) cluster() kafka.Config { return kafka.Config{Brokers: d.brokers} }

// await polls until cond returns true. A program that ends is an error.
func (d *demo) await(ctx context.Context, cond func() (bool, error)) error {
	tick := time.NewTicker(pollInterval)
	defer tick.Stop()
	for {
		ok, err := cond()
		if ok || err != nil {
			return err
		}
		for _, c := range d.children {
			if c.ended() {
				return c.exitError()
			}
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		}
	}
}

// stop stops everything, the last started first. An error describes what did not stop
// correctly.
func (d *demo) stop() error {
	var faults []error
	for _, c := range slices.Backward(d.children) {
		faults = append(faults, c.stop())
	}
	d.children = nil
	if d.box != nil {
		faults = append(faults, d.box.Close())
	}
	if d.dir != "" {
		faults = append(faults, os.RemoveAll(d.dir))
	}
	return errors.Join(faults...)
}
