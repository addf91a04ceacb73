package kafka

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"millrace/pipeline"
)

// Description is what a cluster says of topics, groups and transactional ids.
// Asking has no effect on it.
type Description struct {
	ID     string
	Topics map[string]TopicState // those that exist
	Groups map[string]GroupState

	// Hidden says, by topic, group or transactional id, why it cannot be seen.
	Hidden map[string]error
}

// TopicState is how a topic is.
type TopicState struct {
	TopicInfo
	Replication int
	Config      map[string]string // what is set for this topic, and no default; nil if it may not be seen
	MaxMessage  int               // its max.message.bytes, set or not; 0 if it may not be seen
	Allowed     Operations
}

// GroupState is how a group is. One that does not exist has no members and has
// committed nothing.
type GroupState struct {
	Members   int
	Committed map[string]map[int32]int64 // next offset, by topic and partition
	Allowed   Operations
}

// Operations are what a client may do, by the names that Kafka gives them: READ,
// WRITE, DESCRIBE and so on. Nil says that the cluster does not tell.
type Operations []string

// Lack returns which of these operations are not among those that are allowed.
func (o Operations) Lack(want ...string) (lacking []string) {
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

// Describe asks a cluster for topics, groups and transactional ids.
func Describe(ctx context.Context, cfg Config, topics, groups, txnIDs []string) (Description, error) {
	adm, err := admin(cfg)
	if err != nil {
		return Description{}, err
	}
	defer adm.Close()
	d := Description{Topics: map[string]TopicState{}, Groups: map[string]GroupState{}, Hidden: map[string]error{}}
	// Each is asked for alone: the client makes one answer of many, and that one
	// of them may not be seen would be the whole of it.
	for _, name := range topics {
		if err := d.topic(ctx, adm, name); err != nil {
			return Description{}, fmt.Errorf("asking %s for topic %s: %w", strings.Join(cfg.Brokers, ","), name, cfg.Explain(err))
		}
	}
	for _, name := range groups {
		if err := d.group(ctx, adm, name); err != nil {
			return Description{}, fmt.Errorf("asking for group %s: %w", name, err)
		}
	}
	for _, id := range txnIDs {
		described, err := adm.DescribeTransactions(ctx, id)
		if err == nil {
			err = described[id].Err
		}
		if err != nil && !errors.Is(err, kerr.TransactionalIDNotFound) && !d.hide(id, err) {
			return Description{}, fmt.Errorf("asking for transactional id %s: %w", id, err)
		}
	}
	return d, nil
}

// Limits returns what the topics take.
func (d *Description) Limits() Limits {
	limits := Limits{}
	for name, t := range d.Topics {
		if t.MaxMessage > 0 {
			limits[name] = cut(t.MaxMessage, maxBatch)
		}
	}
	return limits
}

// hide notes that something may not be seen, if that is what the error says.
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
		state.MaxMessage, _ = maxMessage(c)
		state.Config = map[string]string{}
		for _, entry := range c.Configs {
			if entry.Source == kmsg.ConfigSourceDynamicTopicConfig {
				state.Config[entry.Key] = entry.MaybeValue()
			}
		}
	}
	switch {
	case errors.Is(err, kerr.TopicAuthorizationFailed):
		state.Config = nil // DESCRIBE_CONFIGS is a permission of its own
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

// CheckTopics asks whether topics could be created, and creates none. It returns
// why not, by topic.
func CheckTopics(ctx context.Context, cfg Config, specs []TopicSpec) (map[string]error, error) {
	adm, err := admin(cfg)
	if err != nil {
		return nil, err
	}
	defer adm.Close()
	faults := map[string]error{}
	for _, s := range specs {
		partitions, replication, config := s.request()
		answers, err := adm.ValidateCreateTopics(ctx, partitions, replication, config, s.Name)
		if err != nil {
			return nil, fmt.Errorf("asking whether topic %s could be created: %w", s.Name, err)
		}
		if a := answers[s.Name]; a.Err != nil {
			faults[s.Name] = fmt.Errorf("%w %s", a.Err, a.ErrMessage)
		}
	}
	return faults, nil
}

// request returns the spec as it is sent.
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

// SetTopicConfig sets what is to be set for a topic, and leaves the rest.
func SetTopicConfig(ctx context.Context, cfg Config, topic string, set map[string]string) error {
	adm, err := admin(cfg)
	if err != nil {
		return err
	}
	defer adm.Close()
	var changes []kadm.AlterConfig
	for name, value := range set {
		changes = append(changes, kadm.AlterConfig{Op: kadm.SetConfig, Name: name, Value: &value})
	}
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
}

// Bounds are where the committed records of a partition start and end.
type Bounds struct{ Start, End int64 }

// TopicBounds returns the bounds of a topic's partitions. If settled is set, they
// end where the topic ends now, and it waits until all transactions before are
// decided.
func TopicBounds(ctx context.Context, cfg Config, topic string, settled bool) (map[int32]Bounds, error) {
	adm, err := admin(cfg)
	if err != nil {
		return nil, err
	}
	defer adm.Close()
	list := func(f func(context.Context, ...string) (kadm.ListedOffsets, error)) (kadm.ListedOffsets, error) {
		listed, err := f(ctx, topic)
		if err == nil {
			err = listed.Error()
		}
		if err != nil {
			return nil, fmt.Errorf("where topic %s begins and ends: %w", topic, err)
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

// ReadRange is [ReadPartition] up to an offset, if committed records do not end
// before.
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

var errRangeEnd = errors.New("the end of the range")

// ReadNew calls f with records of a topic that are committed from now on, until
// the context ends or f returns an error.
func ReadNew(ctx context.Context, cfg Config, topic string, f func(*pipeline.Record) error) error {
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
