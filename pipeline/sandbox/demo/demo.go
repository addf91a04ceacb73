// Package demo holds the commands of the sandbox program, and the demo: it runs all
// programs on an embedded broker and checks every event and every state.
//
// Start at [Command].
package demo

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"millrace/pipeline/cli"
	"millrace/pipeline/kafka"
	"millrace/pipeline/sandbox"
	"millrace/pipeline/worker"
)

// What the demo knows of the shop's topology.
const (
	demoEvents      = "shop.events"
	demoEnriched    = "shop.enriched"
	demoDeadLetters = "shop.dead_letters"
	demoProcessors  = "shop-enrich" // the consumer groups
	demoProjectors  = "shop-projector"
)

// demoListen is where a processor and a projector answer if that is free.
var demoListen = map[string]string{"processor": worker.ProcessorListen, "projector": worker.ProjectorListen}

const (
	demoPoll     = 50 * time.Millisecond // how often progress is asked for
	demoSession  = 6 * time.Second       // a killed worker's partitions wait so long; brokers take no less
	demoPatience = time.Minute           // for a program to be ready
	demoStop     = 30 * time.Second      // for a program to stop
	demoTail     = 16 << 10              // bytes kept of what a program prints
)

// demo runs the whole of Millrace as a user would: a sandbox in this process, and
// producer, processor and projector as processes of their own.
type demo struct {
	env      *cli.Env
	bin      string // directory of the programs
	topology string
	logLevel string                   // of the programs
	show     bool                     // pass on what they print
	listen   func(addr string) string // where to listen instead

	events  string // JSON lines to send; made up if empty
	count   int    // events to make up
	seed    uint64
	brokers []string // an outside cluster; the sandbox's if empty
	kill    bool     // kill -9 processor and projector on the way

	began    time.Time
	dir      string // removed at the end
	outside  bool
	registry string
	box      *sandbox.Sandbox
	children []*child // in the order of their start
}

// say tells a person how far it is.
func (d *demo) say(format string, args ...any) {
	fmt.Fprintf(d.env.Stderr, "%6.1f s  %s\n", time.Since(d.began).Seconds(), fmt.Sprintf(format, args...))
}

// run does everything once and returns the report. That a number disagrees is in
// the report; an error is that there is none, or that a program did not stop as
// it should.
func (d *demo) run(ctx context.Context) (r *Report, err error) {
	d.began = time.Now()
	defer func() { err = errors.Join(err, d.stop()) }()
	if err := d.start(ctx); err != nil {
		return nil, err
	}
	if err := d.isNew(ctx); err != nil {
		return nil, err
	}
	r = &Report{Disagreements: []string{}, Steps: steps{Start: time.Since(d.began).Seconds()}}
	if err := d.work(ctx, &r.Steps); err != nil {
		return nil, err
	}
	r.Seconds = max(r.Steps.Inject, r.Steps.Process, r.Steps.Project)
	d.say("checking every event and every state")
	if err := d.check(ctx, r); err != nil {
		return nil, err
	}
	return r, nil
}

// up starts everything, says where it is, and waits for the context to end.
func (d *demo) up(ctx context.Context) (err error) {
	d.began = time.Now()
	defer func() { err = errors.Join(err, d.stop()) }()
	if err := d.start(ctx); err != nil {
		return err
	}
	brokers, projector := strings.Join(d.brokers, ","), d.child("projector").url
	fmt.Fprintf(d.env.Stdout, `
Millrace is running.

  Kafka            %s
  schema registry  %s/subjects
  processor        %s/readyz?verbose  and  /metrics
  projector        %[4]s/readyz?verbose  and  /metrics

Send events in another terminal, then look at what became of them:

  %[5]s generate --events 1000%[6]s
  curl '%[4]s/v1/projections/order?limit=3'

Ctrl-C stops everything; nothing is kept.
`, brokers, d.registry, d.child("processor").url, projector, filepath.Join(d.bin, "producer"), reachFlags(brokers, d.registry))
	select {
	case <-ctx.Done():
		return nil
	case <-d.child("processor").exited:
		return d.child("processor").fate()
	case <-d.child("projector").exited:
		return d.child("projector").fate()
	}
}

// start brings up broker, registry, processor and projector, and waits until
// they are ready.
func (d *demo) start(ctx context.Context) (err error) {
	if d.dir, err = os.MkdirTemp("", "millrace-"); err != nil {
		return err
	}
	d.outside = len(d.brokers) > 0
	d.box, err = sandbox.New(sandbox.Config{KafkaAddr: d.listen(KafkaAddress), RegistryAddr: d.listen(sandboxRegistry), NoBroker: d.outside})
	if err != nil {
		return err
	}
	d.registry = d.box.RegistryURL()
	if !d.outside {
		d.brokers = d.box.Brokers()
	}
	d.say("Kafka at %s, schema registry at %s", strings.Join(d.brokers, ","), d.registry)
	if err := errors.Join(d.spawn("processor"), d.spawn("projector")); err != nil {
		return err
	}
	for _, c := range d.children {
		if err := c.ready(ctx); err != nil {
			return err
		}
		d.say("%s ready at %s", c.name, c.url)
	}
	return nil
}

// isNew makes sure that an outside cluster has no events yet: the demo counts
// all there are.
func (d *demo) isNew(ctx context.Context) error {
	if !d.outside {
		return nil
	}
	for _, topic := range []string{demoEvents, demoEnriched, demoDeadLetters} {
		n, err := d.countRecords(ctx, topic)
		if err != nil {
			return err
		}
		if n > 0 {
			return fmt.Errorf("topic %s of %s has %d records already, and the demo counts all there are: delete the topics, or take another cluster",
				topic, strings.Join(d.brokers, ","), n)
		}
	}
	return nil
}

// spawn starts processor or projector.
func (d *demo) spawn(name string) error {
	c := &child{name: name, addrFile: filepath.Join(d.dir, name+".addr"), exited: make(chan struct{})}
	if err := os.Remove(c.addrFile); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	args := []string{
		"run", "--instance", "demo", "--listen", d.listen(demoListen[name]), "--listen-file", c.addrFile,
		"--log-format", "text", "--log-level", d.logLevel,
	}
	if d.kill {
		args = append(args, "--session-timeout", demoSession.String())
	}
	if name == "projector" {
		args = append(args, "--data-dir", filepath.Join(d.dir, name))
	}
	c.cmd = d.command(name, args...)
	c.output = &tail{}
	if d.show {
		c.output.next, c.output.prefix = d.env.Stderr, name+": "
	}
	c.cmd.Stdout, c.cmd.Stderr = c.output, c.output
	if err := c.cmd.Start(); err != nil {
		return fmt.Errorf("starting %s: %w; is --bin the directory where make build put it?", name, err)
	}
	go c.wait()
	d.children = slices.DeleteFunc(d.children, func(old *child) bool { return old.name == name })
	d.children = append(d.children, c)
	return nil
}

// command returns a program with what all of them are told. Settings in the
// environment are for another cluster than this one.
func (d *demo) command(name string, args ...string) *exec.Cmd {
	args = append(args, "-b", strings.Join(d.brokers, ","), "-r", d.registry, "-t", d.topology)
	cmd := exec.Command(filepath.Join(d.bin, name), args...)
	cmd.Env = slices.DeleteFunc(os.Environ(), func(v string) bool { return strings.HasPrefix(v, "MILLRACE_") })
	cmd.SysProcAttr = ownGroup()
	return cmd
}

func (d *demo) child(name string) *child {
	i := slices.IndexFunc(d.children, func(c *child) bool { return c.name == name })
	return d.children[i]
}

// work sends the events and waits until all are processed and folded, with a
// kill -9 on the way if that is asked for.
func (d *demo) work(ctx context.Context, s *steps) error {
	what := fmt.Sprintf("%s made-up events", cli.GroupDigits(int64(d.count)))
	if d.events != "" {
		what = "the events of " + d.events
	}
	d.say("sending %s", what)
	began := time.Now()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	sent := make(chan error, 1)
	go func() {
		err := d.inject(ctx)
		if s.Inject = time.Since(began).Seconds(); err == nil {
			d.say("all sent")
		}
		sent <- err
	}()
	injected := func() error { // waits
		err := <-sent
		sent <- err
		return err
	}
	if d.kill {
		if err := d.killAtWork(ctx, sent); err != nil {
			cancel()
			_ = injected() // it was told to stop, because of err
			return err
		}
	}
	// A child that dies is seen in await below; the producer would wait for nobody.
	if err := injected(); err != nil {
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
				d.say("all %s", done[group])
				delete(waiting, group)
			}
		}
		return len(waiting) == 0, nil
	})
}

// inject sends the events with the producer program.
func (d *demo) inject(ctx context.Context) error {
	args := []string{"send", d.events}
	if d.events == "" {
		args = []string{"generate", "--events", strconv.Itoa(d.count), "--seed", strconv.FormatUint(d.seed, 10)}
		if d.kill {
			// Spread over seconds, or a fast worker is done before it is killed.
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
		return c.fate()
	}
	return nil
}

// killAtWork kills processor and projector with SIGKILL, each while it is at
// work, and starts them again. sent has something when all events are sent.
func (d *demo) killAtWork(ctx context.Context, sent <-chan error) error {
	victims := map[string]string{"processor": demoProcessors, "projector": demoProjectors}
	err := d.await(ctx, func() (bool, error) {
		for name, group := range victims {
			allSent := len(sent) > 0
			committed, err := kafka.Committed(ctx, d.cluster(), group)
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
		if err := c.ready(ctx); err != nil {
			return err
		}
		d.say("%s ready again at %s", c.name, c.url)
	}
	return nil
}

func (d *demo) killNow(name string) error {
	c := d.child(name)
	if err := c.cmd.Process.Kill(); err != nil {
		return fmt.Errorf("killing the %s: %w", name, err)
	}
	<-c.exited
	d.say("killed the %s in the midst of its work", name)
	return d.spawn(name)
}

// cluster returns how to reach Kafka.
func (d *demo) cluster() kafka.Config { return kafka.Config{Brokers: d.brokers} }

// await asks until the answer is yes, or a program has ended.
func (d *demo) await(ctx context.Context, cond func() (bool, error)) error {
	tick := time.NewTicker(demoPoll)
	defer tick.Stop()
	for {
		ok, err := cond()
		if ok || err != nil {
			return err
		}
		for _, c := range d.children {
			if c.ended() {
				return c.fate()
			}
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		}
	}
}

// stop ends what is running, the last started first. An error says what did not
// stop as it should.
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

// child is a process that was started.
type child struct {
	name     string
	addrFile string // where it writes its address
	url      string // once it is ready
	cmd      *exec.Cmd
	output   *tail
	exited   chan struct{}
	err      error // how it ended, once exited is closed
}

func (c *child) wait() {
	c.err = c.cmd.Wait()
	close(c.exited)
}

func (c *child) ended() bool {
	select {
	case <-c.exited:
		return true
	default:
		return false
	}
}

// fate says how a child ended that was not to end.
func (c *child) fate() error {
	how := "exit code 0"
	if c.err != nil {
		how = c.err.Error()
	}
	return fmt.Errorf("%s ended by itself: %s; the last it printed:\n%s", c.name, how, c.output)
}

// ready waits until /readyz says so.
func (c *child) ready(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, demoPatience)
	defer cancel()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	last := errors.New("it has not opened its port")
	for {
		if addr, err := os.ReadFile(c.addrFile); err == nil && len(addr) > 0 {
			c.url = "http://" + strings.TrimSpace(string(addr))
			err := getJSON(ctx, c.url+"/readyz?verbose", nil)
			if err == nil {
				return nil
			}
			if ctx.Err() == nil {
				last = err // else what it said before tells more
			}
		}
		select {
		case <-c.exited:
			return c.fate()
		case <-ctx.Done():
			return fmt.Errorf("%s is not ready: %w; the last it printed:\n%s", c.name, errors.Join(ctx.Err(), last), c.output)
		case <-tick.C:
		}
	}
}

// stop asks the child to end and waits for it.
func (c *child) stop() error {
	if c.ended() {
		return nil // and was reported, if it was not meant
	}
	if err := c.cmd.Process.Signal(syscall.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("stopping %s: %w", c.name, err)
	}
	timer := time.NewTimer(demoStop)
	defer timer.Stop()
	select {
	case <-c.exited:
	case <-timer.C:
		err := c.cmd.Process.Kill()
		<-c.exited
		return errors.Join(err, fmt.Errorf("%s did not stop within %v of SIGTERM; the last it printed:\n%s", c.name, demoStop, c.output))
	}
	if c.err != nil {
		return fmt.Errorf("%s did not stop well: %w; the last it printed:\n%s", c.name, c.err, c.output)
	}
	return nil
}

// getJSON fetches a URL and decodes what it answers into v, if not nil.
func getJSON(ctx context.Context, url string, v any) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	switch {
	case err != nil:
		return err
	case resp.StatusCode != http.StatusOK:
		return fmt.Errorf("%s: %s: %s", url, resp.Status, bytes.TrimSpace(body))
	case v == nil:
		return nil
	}
	if err := json.Unmarshal(body, v); err != nil {
		return fmt.Errorf("%s: %w", url, err)
	}
	return nil
}

// tail keeps the last of what a process prints, and passes all of it on, line by
// line, if there is somebody to pass it on to.
type tail struct {
	next   io.Writer
	prefix string

	mu   sync.Mutex
	last []byte
	line []byte // begun
}

func (t *tail) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.last = append(t.last, p...)
	if over := len(t.last) - demoTail; over > 0 {
		t.last = append(t.last[:0], t.last[over:]...)
	}
	if t.next == nil {
		return len(p), nil
	}
	t.line = append(t.line, p...)
	for {
		end := bytes.IndexByte(t.line, '\n')
		if end < 0 {
			return len(p), nil
		}
		if _, err := fmt.Fprintf(t.next, "%s%s", t.prefix, t.line[:end+1]); err != nil {
			return 0, err
		}
		t.line = append(t.line[:0], t.line[end+1:]...)
	}
}

func (t *tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return strings.TrimRight(string(t.last), "\n")
}
