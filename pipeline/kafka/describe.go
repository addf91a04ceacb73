package kafka

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"millrace/pipeline"
)

// Description describes topics, groups and transactional ids of a cluster.
type Description struct {
	ID     string                // cluster id
	Topics map[string]TopicState // the existing topics
	Groups map[string]GroupState

	// Hidden holds, by topic, group or transactional id, the error if we may not
	// describe it.
	Hidden map[string]error
}

// TopicState is the state of a topic.
type TopicState struct {
	TopicInfo
	Replication int
	Config      map[string]string // settings of this topic without the defaults; nil if we may not read them
	Limit       Limit             // what a record may be, defaults included; zero if we may not read it
	Allowed     Operations
}

// GroupState is the state of a group. A group that does not exist has no members and
// no committed offsets.
type GroupState struct {
	Members   int
	Committed map[string]map[int32]int64 // next offset, by topic and partition
	Allowed   Operations
}

// Operations are the operations that a client is authorized for, by Kafka's names:
// READ, WRITE, DESCRIBE and so on. Nil means that the cluster does not report them.
type Operations []string

// Missing returns the wanted operations that are not allowed. It returns nil if o is nil.
func (o Operations) Missing(want ...string) (lacking []string) {
	if o == nil || slices.Contains(o, "ALL") {
		return nil
	}
	for _, w := range want {
		if !slices.Contains(o, w) {
			lacking = append(lacking, w)
		}
	}
	return lacking
}

func operations(ops []kadm.ACLOperation) (out Operations) {
	for _, o := range ops {
		out = append(out, o.String())
	}
	return out
}

// Describe reads the state of topics, groups and transactional ids. It changes nothing.
// Objects that we may not describe are in Hidden, without an error.
func Describe(ctx context.Context, cfg Config, topics, groups, txnIDs []string) (out Description, err error) {
	err = Administer(ctx, cfg, func(adm *kadm.Client) error {
		out, err = describe(ctx, adm, cfg, topics, groups, txnIDs)
		return err
	})
	return out, trimDial(err)
}

func describe(ctx context.Context, adm *kadm.Client, cfg Config, topics, groups, txnIDs []string) (Description, error) {
	d := Description{Topics: map[string]TopicState{}, Groups: map[string]GroupState{}, Hidden: map[string]error{}}
	// One request per object: the client merges the answers of several, and one
	// object that we may not describe would then fail all of them.
	for _, name := range topics {
		if err := d.topic(ctx, adm, name); err != nil {
			return Description{}, fmt.Errorf("describing topic %s: %w", name, cfg.Explain(err))
		}
	}
	for _, name := range groups {
		if err := d.group(ctx, adm, name); err != nil {
			return Description{}, fmt.Errorf("describing group %s: %w", name, err)
		}
	}
	for _, id := range txnIDs {
		described, err := adm.DescribeTransactions(ctx, id)
		if err == nil {
			err = described[id].Err
		}
		if err != nil && !errors.Is(err, kerr.TransactionalIDNotFound) && !d.hide(id, err) {
			return Description{}, fmt.Errorf("describing transactional id %s: %w", id, err)
		}
	}
	return d, nil
}

// Limits returns the limits of the topics.
func (d *Description) Limits() Limits {
	limits := Limits{}
	for name, t := range d.Topics {
		limits[name] = t.Limit.clamp(maxBatch)
	}
	return limits
}

// hide records an object in Hidden if err is an authorization error, and reports
// whether it is one.
func (d *Description) hide(name string, err error) bool {
	for _, denied := range []error{kerr.TopicAuthorizationFailed, kerr.GroupAuthorizationFailed, kerr.TransactionalIDAuthorizationFailed, kerr.ClusterAuthorizationFailed} {
		if errors.Is(err, denied) {
			d.Hidden[name] = denied
			return true
		}
	}
	return false
}

func (d *Description) topic(ctx context.Context, adm *kadm.Client, name string) error {
	meta, err := adm.Metadata(kadm.WithAuthorizedOps(ctx), name)
	t := meta.Topics[name]
	if err == nil {
		d.ID, err = meta.Cluster, t.Err
	}
	switch {
	case errors.Is(err, kerr.UnknownTopicOrPartition), err != nil && d.hide(name, err):
		return nil
	case err != nil:
		return err
	}
	state := TopicState{TopicInfo: TopicInfo{name, t.ID.String(), len(t.Partitions)}, Allowed: operations(t.AuthorizedOperations)}
	for _, p := range t.Partitions {
		state.Replication = max(state.Replication, len(p.Replicas))
	}
	configs, err := adm.DescribeTopicConfigs(ctx, name)
	if err == nil {
		var c kadm.ResourceConfig
		if c, err = configs.On(name, nil); err == nil {
			err = c.Err
		}
		state.Limit = limitOf(c)
		state.Config = map[string]string{}
		for _, entry := range c.Configs {
			if entry.Source == kmsg.ConfigSourceDynamicTopicConfig {
				state.Config[entry.Key] = entry.MaybeValue()
			}
		}
	}
	switch {
	case errors.Is(err, kerr.TopicAuthorizationFailed):
		state.Config = nil // DESCRIBE_CONFIGS is a separate permission
	case err != nil:
		return err
	}
	d.Topics[name] = state
	return nil
}

func (d *Description) group(ctx context.Context, adm *kadm.Client, name string) error {
	described, err := adm.DescribeGroups(ctx, name)
	g := described[name]
	if err == nil {
		err = g.Err
	}
	var committed kadm.OffsetResponses
	if err == nil || errors.Is(err, kerr.GroupIDNotFound) {
		if committed, err = adm.FetchOffsets(ctx, name); err == nil {
			err = committed.Error()
		}
	}
	switch {
	case errors.Is(err, kerr.GroupIDNotFound):
	case err != nil && d.hide(name, err):
		return nil
	case err != nil:
		return err
	}
	state := GroupState{Members: len(g.Members), Committed: map[string]map[int32]int64{}, Allowed: operations(g.AuthorizedOperations)}
	committed.Each(func(o kadm.OffsetResponse) {
		if o.At < 0 {
			return
		}
		if state.Committed[o.Topic] == nil {
			state.Committed[o.Topic] = map[int32]int64{}
		}
		state.Committed[o.Topic][o.Partition] = o.At
	})
	d.Groups[name] = state
	return nil
}

// CheckTopics asks the brokers whether the topics could be created, without creating
// them. It returns an error for each topic that could not.
func CheckTopics(ctx context.Context, cfg Config, specs []TopicSpec) (out map[string]error, err error) {
	err = Administer(ctx, cfg, func(adm *kadm.Client) error {
		out, err = checkTopics(ctx, adm, specs)
		return err
	})
	return out, trimDial(err)
}

func checkTopics(ctx context.Context, adm *kadm.Client, specs []TopicSpec) (map[string]error, error) {
	faults := map[string]error{}
	for _, s := range specs {
		partitions, replication, config := s.request()
		answers, err := adm.ValidateCreateTopics(ctx, partitions, replication, config, s.Name)
		if err != nil {
			return nil, fmt.Errorf("checking whether topic %s could be created: %w", s.Name, err)
		}
		if a := answers[s.Name]; a.Err != nil {
			faults[s.Name] = fmt.Errorf("%w %s", a.Err, a.ErrMessage)
		}
	}
	return faults, nil
}

// request returns the fields of a CreateTopics request; -1 selects a broker default.
func (s TopicSpec) request() (partitions int32, replication int16, config map[string]*string) {
	config = map[string]*string{}
	for k, v := range s.Config {
		config[k] = &v
	}
	partitions, replication = int32(s.Partitions), int16(s.Replication)
	if partitions == 0 {
		partitions = -1
	}
	if replication == 0 {
		replication = -1
	}
	return partitions, replication, config
}

// SetTopicConfig sets the given settings of a topic and leaves the others unchanged.
func SetTopicConfig(ctx context.Context, cfg Config, topic string, set map[string]string) error {
	var changes []kadm.AlterConfig
	for name, value := range set {
		changes = append(changes, kadm.AlterConfig{Op: kadm.SetConfig, Name: name, Value: &value})
	}
	return trimDial(Administer(ctx, cfg, func(adm *kadm.Client) error {
		answers, err := adm.AlterTopicConfigs(ctx, changes, topic)
		if err != nil {
			return fmt.Errorf("setting the configuration of topic %s: %w", topic, err)
		}
		for _, a := range answers {
			if a.Err != nil {
				return fmt.Errorf("setting the configuration of topic %s: %w %s", topic, a.Err, a.ErrMessage)
			}
		}
		return nil
	}))
}

// Bounds are the start offset of a partition's committed records, and the offset after
// the last one.
type Bounds struct{ Start, End int64 }

// TopicBounds returns the bounds of a topic's partitions. If settled is set, they end
// at the current high watermarks, and TopicBounds waits until all transactions below
// these are committed or aborted.
func TopicBounds(ctx context.Context, cfg Config, topic string, settled bool) (out map[int32]Bounds, err error) {
	err = Administer(ctx, cfg, func(adm *kadm.Client) error {
		out, err = topicBounds(ctx, adm, topic, settled)
		return err
	})
	return out, trimDial(err)
}

func topicBounds(ctx context.Context, adm *kadm.Client, topic string, settled bool) (_ map[int32]Bounds, err error) {
	list := func(f func(context.Context, ...string) (kadm.ListedOffsets, error)) (kadm.ListedOffsets, error) {
		listed, err := f(ctx, topic)
		if err == nil {
			err = listed.Error()
		}
		if err != nil {
			return nil, fmt.Errorf("start and end offsets of topic %s: %w", topic, err)
		}
		return listed, nil
	}
	var last kadm.ListedOffsets
	if settled {
		if last, err = list(adm.ListEndOffsets); err != nil {
			return nil, err
		}
	}
	for wait := minBackoff / 10; ; wait = sleep(ctx, wait) {
		ends, err := list(adm.ListCommittedOffsets)
		if err != nil {
			return nil, err
		}
		starts, err := list(adm.ListStartOffsets)
		if err != nil {
			return nil, err
		}
		out, open := map[int32]Bounds{}, false
		ends.Each(func(o kadm.ListedOffset) {
			start, _ := starts.Lookup(topic, o.Partition)
			b := Bounds{start.Offset, o.Offset}
			if end, ok := last.Lookup(topic, o.Partition); ok {
				open = open || o.Offset < end.Offset
				b.End = end.Offset
			}
			out[o.Partition] = b
		})
		if !open {
			return out, nil
		}
	}
}

// ReadRange is [ReadPartition] within bounds. It ends earlier if the committed records
// end earlier.
func ReadRange(ctx context.Context, cfg Config, topic string, partition int32, b Bounds, f func(*pipeline.Record) error) error {
	if b.Start >= b.End {
		return nil
	}
	_, err := ReadPartition(ctx, cfg, topic, partition, b.Start, func(r *pipeline.Record) error {
		if r.Offset >= b.End {
			return errRangeEnd
		}
		if err := f(r); err != nil {
			return err
		}
		if r.Offset == b.End-1 {
			return errRangeEnd
		}
		return nil
	})
	if errors.Is(err, errRangeEnd) {
		return nil
	}
	return err
}

var errRangeEnd = errors.New("end of the range")

// FollowTopic calls f with the records of a topic that are committed from now on. It
// returns nil when the context ends, else the error of f or of reading. While no broker
// answers, the client retries without an error.
func FollowTopic(ctx context.Context, cfg Config, topic string, f func(*pipeline.Record) error) (err error) {
	defer func() { err = trimDial(err) }()
	opts, err := cfg.Options()
	if err != nil {
		return err
	}
	cl, err := kgo.NewClient(append(opts,
		kgo.FetchIsolationLevel(kgo.ReadCommitted()),
		kgo.ConsumeTopics(topic),
		kgo.ConsumeResetOffset(kgo.NewOffset().AtEnd()),
		kgo.FetchMaxWait(time.Second),
	)...)
	if err != nil {
		return err
	}
	defer cl.Close()
	var in pipeline.Record
	for {
		fetches := cl.PollFetches(ctx)
		if ctx.Err() != nil {
			return nil
		}
		if err := fetches.Err(); err != nil {
			return fmt.Errorf("reading topic %s: %w", topic, err)
		}
		for it := fetches.RecordIter(); !it.Done(); {
			r := it.Next()
			setRecord(&in, topic, r.Partition, r)
			if err := f(&in); err != nil {
				return err
			}
		}
	}
}
