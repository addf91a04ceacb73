package main

import (
	"context"
	"encoding/binary"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"runtime/pprof"
	"strings"
	"syscall"
	"time"

	"github.com/linkedin/goavro/v2"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/sr"
)

// naive holds the loops that Millrace is compared with. They use only the Kafka client,
// and handle errors no better than the client's examples. Each one runs as a separate
// process.
type naive struct {
	cluster              string
	registry             string
	group, input, output string
	work, guarantee      string
	interval             time.Duration                     // between commits; 0 commits after every poll
	profile              string                            // file for a CPU profile; "" means none
	change               func(*kgo.Record) ([]byte, error) // returns the output value
}

const (
	workCopy   = "copy"
	workGoavro = "goavro"

	exactlyOnce = "exactly_once"
	atLeastOnce = "at_least_once"
)

// naiveMain runs a loop until SIGTERM.
func naiveMain(args []string) error {
	var n naive
	flags := flag.NewFlagSet("naive", flag.ContinueOnError)
	flags.StringVar(&n.cluster, "brokers", "", "")
	flags.StringVar(&n.registry, "registry", "", "")
	flags.StringVar(&n.group, "group", "", "")
	flags.StringVar(&n.input, "input", "", "")
	flags.StringVar(&n.output, "output", "", "")
	flags.StringVar(&n.work, "work", workCopy, "")
	flags.StringVar(&n.guarantee, "guarantee", exactlyOnce, "")
	flags.DurationVar(&n.interval, "commit-interval", 0, "")
	flags.StringVar(&n.profile, "profile", "", "")
	if err := flags.Parse(args); err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if n.profile != "" {
		f, err := os.Create(n.profile)
		if err != nil {
			return err
		}
		defer f.Close()
		if err := pprof.StartCPUProfile(f); err != nil {
			return err
		}
		defer pprof.StopCPUProfile()
	}
	n.change = func(r *kgo.Record) ([]byte, error) { return r.Value, nil }
	if n.work == workGoavro {
		registry, err := sr.NewClient(sr.URLs(n.registry))
		if err != nil {
			return err
		}
		e := enricher{registry: registry, codecs: map[uint32]*goavro.Codec{}}
		n.change = e.change
	}
	if n.guarantee == atLeastOnce {
		return n.atLeastOnce(ctx)
	}
	return n.exactlyOnce(ctx)
}

func (n *naive) options() []kgo.Opt {
	return []kgo.Opt{
		kgo.SeedBrokers(strings.Split(n.cluster, ",")...),
		kgo.DefaultProduceTopic(n.output),
		kgo.ConsumerGroup(n.group),
		kgo.ConsumeTopics(n.input),
		kgo.ConsumeStartOffset(kgo.NewOffset().AtStart()),
		kgo.FetchIsolationLevel(kgo.ReadCommitted()),
	}
}

// exactlyOnce is the loop of the client's transaction example. With an interval, each
// transaction collects records for that time, as in Millrace.
func (n *naive) exactlyOnce(ctx context.Context) error {
	sess, err := kgo.NewGroupTransactSession(append(n.options(), kgo.TransactionalID(n.group))...)
	if err != nil {
		return err
	}
	defer sess.Close()
	for {
		fetches := sess.PollFetches(ctx)
		if ctx.Err() != nil {
			return nil
		}
		if err := fetches.Err(); err != nil {
			return err
		}
		if err := sess.Begin(); err != nil {
			return err
		}
		promise := kgo.AbortingFirstErrPromise(sess.Client())
		for deadline := time.Now().Add(n.interval); ; {
			if err := n.copy(sess, fetches, promise); err != nil {
				return err
			}
			if !time.Now().Before(deadline) {
				break
			}
			if fetches, err = pollUntil(ctx, sess.PollFetches, deadline); err != nil {
				return err
			}
		}
		if _, err := sess.End(context.Background(), promise.Err() == nil); err != nil {
			return err
		}
	}
}

// producer is the common part of kgo.Client and kgo.GroupTransactSession.
type producer interface {
	Produce(ctx context.Context, r *kgo.Record, promise func(*kgo.Record, error))
}

// copy produces the changed records to the output topic.
func (n *naive) copy(to producer, fetches kgo.Fetches, promise *kgo.FirstErrPromise) (err error) {
	fetches.EachRecord(func(r *kgo.Record) {
		value, failed := n.change(r)
		if failed != nil {
			err = failed
			return
		}
		to.Produce(context.Background(), &kgo.Record{Key: r.Key, Value: value, Headers: r.Headers, Timestamp: r.Timestamp}, promise.Promise())
	})
	return err
}

// pollUntil polls until there are records or the deadline has passed.
func pollUntil(ctx context.Context, poll func(context.Context) kgo.Fetches, deadline time.Time) (kgo.Fetches, error) {
	ctx, cancel := context.WithDeadline(ctx, deadline)
	defer cancel()
	fetches := poll(ctx)
	if ctx.Err() != nil && fetches.NumRecords() == 0 {
		return nil, nil
	}
	return fetches, fetches.Err()
}

// atLeastOnce commits the offsets of its input after its output is acknowledged.
func (n *naive) atLeastOnce(ctx context.Context) error {
	cl, err := kgo.NewClient(append(n.options(), kgo.DisableAutoCommit(), kgo.BlockRebalanceOnPoll())...)
	if err != nil {
		return err
	}
	defer cl.CloseAllowingRebalance()
	for {
		fetches := cl.PollFetches(ctx)
		if ctx.Err() != nil {
			return nil
		}
		if err := fetches.Err(); err != nil {
			return err
		}
		promise := kgo.AbortingFirstErrPromise(cl)
		for deadline := time.Now().Add(n.interval); ; {
			if err := n.copy(cl, fetches, promise); err != nil {
				return err
			}
			if !time.Now().Before(deadline) {
				break
			}
			if fetches, err = pollUntil(ctx, cl.PollFetches, deadline); err != nil {
				return err
			}
		}
		if err := cl.Flush(context.Background()); err != nil {
			return err
		}
		if err := promise.Err(); err != nil {
			return err
		}
		if err := cl.CommitUncommittedOffsets(context.Background()); err != nil {
			return err
		}
		cl.AllowRebalance()
	}
}

// enricher does the work of the pipeline enrich of topology.yaml: it decodes each event
// to a Go map, changes it and encodes it again.
type enricher struct {
	registry *sr.Client
	codecs   map[uint32]*goavro.Codec // by schema id
}

func (e *enricher) change(r *kgo.Record) ([]byte, error) {
	if len(r.Value) < 5 || r.Value[0] != 0 {
		return nil, errors.New("record has no schema id")
	}
	id := binary.BigEndian.Uint32(r.Value[1:])
	codec, err := e.codec(id)
	if err != nil {
		return nil, err
	}
	native, _, err := codec.NativeFromBinary(r.Value[5:])
	if err != nil {
		return nil, err
	}
	event := native.(map[string]any)
	metadata := event["metadata"].(map[string]any)
	if event["version"].(int32) < 1 || metadata["channel"] == "test" {
		return nil, fmt.Errorf("event %v does not pass the filter, but the benchmark has no such events", event["id"])
	}
	metadata["pipeline"] = "bench"
	metadata["processed_at"] = time.Now().UTC().Format("2006-01-02T15:04:05.000000Z07:00")
	out := make([]byte, 0, len(r.Value)+80)
	return codec.BinaryFromNative(append(out, r.Value[:5]...), event)
}

func (e *enricher) codec(id uint32) (*goavro.Codec, error) {
	if c := e.codecs[id]; c != nil {
		return c, nil
	}
	schema, err := e.registry.SchemaByID(context.Background(), int(id))
	if err != nil {
		return nil, err
	}
	c, err := goavro.NewCodec(schema.Schema)
	if err == nil {
		e.codecs[id] = c
	}
	return c, err
}
