package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"

	"millrace/pipeline/sandbox"
)

// cluster is the Kafka cluster of a run, with a registry. If it is external, box is the
// registry; otherwise child is a sandbox process with both.
type cluster struct {
	brokers  []string
	registry string // URL
	external bool
	adm      *kadm.Client

	child *child
	box   *sandbox.Sandbox
}

// open connects to the brokers. Without brokers, it starts a sandbox.
func open(ctx context.Context, bin string, brokers []string) (_ *cluster, err error) {
	c := &cluster{brokers: brokers, external: len(brokers) > 0}
	defer func() {
		if err != nil {
			err = errors.Join(err, c.close())
		}
	}()
	if c.external {
		if c.box, err = sandbox.New(sandbox.Config{NoBroker: true}); err != nil {
			return nil, err
		}
		c.registry = c.box.RegistryURL()
	} else {
		if c.child, err = start(filepath.Join(bin, "sandbox"), nil, "run", "--kafka-listen", "127.0.0.1:0", "--registry-listen", "127.0.0.1:0"); err != nil {
			return nil, err
		}
		addresses := regexp.MustCompile(`Kafka +(\S+)\n +schema registry +(\S+)\n`)
		err := await(ctx, time.Minute, "starting the sandbox", func() (bool, error) {
			if at := addresses.FindStringSubmatch(c.child.output.String()); at != nil {
				c.brokers, c.registry = strings.Split(at[1], ","), at[2]
				return true, nil
			}
			return false, c.child.alive()
		})
		if err != nil {
			return nil, err
		}
	}
	cl, err := kgo.NewClient(kgo.SeedBrokers(c.brokers...))
	if err != nil {
		return nil, err
	}
	c.adm = kadm.NewClient(cl)
	return c, nil
}

func (c *cluster) close() (err error) {
	if c.adm != nil {
		c.adm.Close()
	}
	if c.child != nil {
		err = c.child.stop()
	}
	if c.box != nil {
		err = errors.Join(err, c.box.Close())
	}
	return err
}

// describe describes the broker.
func (c *cluster) describe(ctx context.Context) string {
	if !c.external {
		return "sandbox run (franz-go's kfake), a process on the same machine, in memory"
	}
	if v, err := c.adm.ApiVersions(ctx); err == nil {
		for _, b := range v {
			return "Apache Kafka or compatible, " + b.VersionGuess()
		}
	}
	return "an external cluster"
}

// create creates a topic.
func (c *cluster) create(ctx context.Context, topic string) error {
	_, err := c.adm.CreateTopic(ctx, partitions, -1, nil, topic)
	return err
}

// ends returns the high watermark of each partition of a topic. The last stable offset
// may still be lower, because the marker of the last transaction may be missing; a
// reader that reads up to the high watermark waits for the marker.
func (c *cluster) ends(ctx context.Context, topic string) (map[int32]int64, error) {
	listed, err := c.adm.ListEndOffsets(ctx, topic)
	if err != nil {
		return nil, err
	}
	ends := map[int32]int64{}
	listed.Each(func(o kadm.ListedOffset) { ends[o.Partition] = o.Offset })
	return ends, listed.Error()
}

// committed returns the number of events of a topic that a group has committed.
func (c *cluster) committed(ctx context.Context, group, topic string) (n int64, err error) {
	offsets, err := c.adm.FetchOffsets(ctx, group)
	if errors.Is(err, kerr.GroupIDNotFound) || kerr.IsRetriable(err) {
		return 0, nil // the group has no members yet, or the cluster is still creating __consumer_offsets
	}
	if err != nil {
		return 0, err
	}
	offsets.Each(func(o kadm.OffsetResponse) {
		if o.Topic == topic && o.At > 0 {
			n += o.At
		}
	})
	return n, offsets.Error()
}

// read calls f with each committed record of a topic, and returns their number.
func (c *cluster) read(ctx context.Context, topic string, f func(*kgo.Record)) (n int64, err error) {
	left, err := c.ends(ctx, topic)
	if err != nil {
		return 0, err
	}
	at := map[int32]kgo.Offset{}
	for p, end := range left {
		if end == 0 {
			delete(left, p)
			continue
		}
		at[p] = kgo.NewOffset().AtStart()
	}
	cl, err := kgo.NewClient(kgo.SeedBrokers(c.brokers...), kgo.FetchIsolationLevel(kgo.ReadCommitted()),
		kgo.KeepControlRecords(), kgo.ConsumePartitions(map[string]map[int32]kgo.Offset{topic: at}))
	if err != nil {
		return 0, err
	}
	defer cl.Close()
	for len(left) > 0 {
		fetches := cl.PollFetches(ctx)
		if err := fetches.Err(); err != nil {
			return n, err
		}
		fetches.EachPartition(func(p kgo.FetchTopicPartition) {
			for _, r := range p.Records {
				if !r.Attrs.IsControl() {
					n++
					f(r)
				}
				if r.Offset >= left[p.Partition]-1 {
					delete(left, p.Partition)
				}
			}
		})
	}
	return n, nil
}

// child is a started process.
type child struct {
	name   string
	cmd    *exec.Cmd
	output output
	exited chan struct{} // closed when the process has ended
	err    error         // result of Wait; read it only after exited is closed
}

// start starts a program with additional environment variables. It removes the
// variables that would point Millrace programs to another cluster.
func start(program string, env []string, args ...string) (*child, error) {
	c := &child{name: filepath.Base(program), cmd: exec.Command(program, args...), exited: make(chan struct{})}
	own := slices.DeleteFunc(os.Environ(), func(v string) bool { return strings.HasPrefix(v, "MILLRACE_") })
	c.cmd.Env = append(own, env...)
	c.cmd.Stdout, c.cmd.Stderr = &c.output, &c.output
	if err := c.cmd.Start(); err != nil {
		return nil, fmt.Errorf("starting %s: %w; set -bin to the directory of the programs that make build built", c.name, err)
	}
	go func() {
		c.err = c.cmd.Wait()
		close(c.exited)
	}()
	return c, nil
}

// alive returns an error if the child has ended.
func (c *child) alive() error {
	select {
	case <-c.exited:
		return fmt.Errorf("%s ended unexpectedly: %v; it printed:\n%s", c.name, c.cmd.ProcessState, c.output.String())
	default:
		return nil
	}
}

// stop sends SIGTERM to the child and waits until it has ended. It kills a child that
// does not end within 30 s.
func (c *child) stop() error {
	if err := c.alive(); err != nil {
		return err
	}
	if err := c.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		return err
	}
	select {
	case <-c.exited:
	case <-time.After(30 * time.Second):
		_ = c.cmd.Process.Kill() // the error below is more important
		<-c.exited
		return fmt.Errorf("%s did not stop within 30 s; it printed:\n%s", c.name, c.output.String())
	}
	if c.err != nil {
		return fmt.Errorf("%s failed while stopping: %w; it printed:\n%s", c.name, c.err, c.output.String())
	}
	return nil
}

// cpu returns the user and system CPU time of a child that has ended.
func (c *child) cpu() time.Duration {
	return c.cmd.ProcessState.UserTime() + c.cmd.ProcessState.SystemTime()
}

// output holds the first 256 KiB of a child's output. It is safe for concurrent use.
type output struct {
	mu   sync.Mutex
	text bytes.Buffer // guarded by mu
}

var _ io.Writer = (*output)(nil)

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	const most = 256 << 10
	o.text.Write(p[:min(len(p), most-min(most, o.text.Len()))])
	return len(p), nil
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.text.String()
}

// await polls cond until it returns true or an error. what names the condition in the
// timeout error.
func await(ctx context.Context, timeout time.Duration, what string, cond func() (bool, error)) error {
	ctx, cancel := context.WithTimeoutCause(ctx, timeout, fmt.Errorf("%s: timeout after %v", what, timeout))
	defer cancel()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		if ok, err := cond(); ok || err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-tick.C:
		}
	}
}
