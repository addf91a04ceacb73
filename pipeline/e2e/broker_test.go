package e2e

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"millrace/pipeline/e2e/kafkatest"
	"millrace/pipeline/sandbox"
)

// A question is a request and the error code of its answer, which Apache Kafka and the
// sandbox's broker must agree on.
type question struct {
	name string
	want *kerr.Error // nil: the request succeeds
	ask  func(ctx context.Context, b *asked) error
}

// asked is a broker that is asked questions.
type asked struct {
	brokers []string
	client  *kgo.Client
	admin   *kadm.Client
}

type configs map[string]string

// create creates a topic with one partition and a new name.
func (b *asked) create(ctx context.Context, config configs) (topic string, err error) {
	topic = "agree-" + uuid.NewString()
	return topic, b.createNamed(ctx, topic, 1, 1, config)
}

func (b *asked) createNamed(ctx context.Context, topic string, partitions int32, replication int16, config configs) error {
	set := map[string]*string{}
	for k, v := range config {
		set[k] = &v
	}
	_, err := b.admin.CreateTopic(ctx, partitions, replication, set, topic)
	return err
}

// write writes records to a new topic, in one batch, and returns the error of the first
// one.
func (b *asked) write(ctx context.Context, config configs, records []*kgo.Record, opts ...kgo.Opt) error {
	topic, err := b.create(ctx, config)
	if err != nil {
		return fmt.Errorf("creating the topic: %w", err)
	}
	for _, r := range records {
		r.Topic = topic
	}
	cl, err := kgo.NewClient(append([]kgo.Opt{kgo.SeedBrokers(b.brokers...), kgo.ProducerLinger(20 * time.Millisecond), kgo.RecordRetries(3), kgo.ProducerBatchCompression(kgo.NoCompression())}, opts...)...)
	if err != nil {
		return err
	}
	defer cl.Close()
	return cl.ProduceSync(ctx, records...).FirstErr()
}

// at returns a record whose time is d from now.
func at(d time.Duration) []*kgo.Record {
	return []*kgo.Record{{Key: []byte("k"), Value: []byte("v"), Timestamp: time.Now().Add(d)}}
}

func sizedRecord(n int) []*kgo.Record {
	value := make([]byte, n)
	_, _ = rand.Read(value)
	return []*kgo.Record{{Key: []byte("k"), Value: value}}
}

func writing(name string, want *kerr.Error, config configs, records func() []*kgo.Record, opts ...kgo.Opt) question {
	return question{"write " + name, want, func(ctx context.Context, b *asked) error { return b.write(ctx, config, records(), opts...) }}
}

func creating(want *kerr.Error, name, value string) question {
	return question{fmt.Sprintf("create with %s=%.40q", name, value), want, func(ctx context.Context, b *asked) error {
		_, err := b.create(ctx, configs{name: value})
		return err
	}}
}

func naming(want *kerr.Error, topic string, partitions int32, replication int16) question {
	return question{fmt.Sprintf("create %.20q with %d partitions, %d replicas", topic, partitions, replication), want, func(ctx context.Context, b *asked) error {
		return b.createNamed(ctx, topic, partitions, replication, nil)
	}}
}

// groupTimeout sets the session timeout of a group, in ms.
func groupTimeout(name string, want *kerr.Error, ms string) question {
	return question{"a session timeout of a group " + name, want, func(ctx context.Context, b *asked) error {
		req := kmsg.NewPtrIncrementalAlterConfigsRequest()
		group := kmsg.NewIncrementalAlterConfigsRequestResource()
		group.ResourceType, group.ResourceName = kmsg.ConfigResourceTypeGroupConfig, "agree-group-"+strings.ReplaceAll(name, " ", "-")
		set := kmsg.NewIncrementalAlterConfigsRequestResourceConfig()
		set.Name, set.Value = "consumer.session.timeout.ms", &ms
		group.Configs = append(group.Configs, set)
		req.Resources = append(req.Resources, group)
		resp, err := req.RequestWith(ctx, b.client)
		if err != nil {
			return err
		}
		return kerr.ErrorForCode(resp.Resources[0].ErrorCode)
	}}
}

func altering(name string, want *kerr.Error, op kadm.IncrementalOp, key string, value *string) question {
	return question{"alter " + name, want, func(ctx context.Context, b *asked) error {
		topic, err := b.create(ctx, configs{"cleanup.policy": "delete"})
		if err != nil {
			return err
		}
		answers, err := b.admin.AlterTopicConfigs(ctx, []kadm.AlterConfig{{Op: op, Name: key, Value: value}}, topic)
		if err == nil {
			err = answers[0].Err
		}
		return err
	}}
}

func growing(want *kerr.Error, from, to int) question {
	return question{fmt.Sprintf("partitions from %d to %d", from, to), want, func(ctx context.Context, b *asked) error {
		topic := "agree-" + uuid.NewString()
		if err := b.createNamed(ctx, topic, int32(from), 1, nil); err != nil {
			return err
		}
		answers, err := b.admin.UpdatePartitions(ctx, to, topic)
		if err == nil {
			err = answers[topic].Err
		}
		return err
	}}
}

func questions() []question {
	text := func(s string) *string { return &s }
	one := func(rs ...*kgo.Record) func() []*kgo.Record { return func() []*kgo.Record { return rs } }
	in := func(d time.Duration) func() []*kgo.Record { return func() []*kgo.Record { return at(d) } }
	mixed := func() []*kgo.Record { return append(at(0), append(at(2*time.Hour), at(0)...)...) }
	compact := configs{"cleanup.policy": "compact"}
	id := uuid.NewString()
	return []question{
		writing("two hours ahead", kerr.InvalidTimestamp, nil, in(2*time.Hour)),
		writing("50 minutes ahead", nil, nil, in(50*time.Minute)),
		writing("one of three two hours ahead", kerr.InvalidTimestamp, nil, mixed),
		writing("compressed, one of three two hours ahead", kerr.InvalidTimestamp, nil, mixed, kgo.ProducerBatchCompression(kgo.GzipCompression())),
		writing("two hours ahead, without idempotence", kerr.InvalidTimestamp, nil, in(2*time.Hour), kgo.DisableIdempotentWrite()),
		writing("two hours ahead, after.max is 3 hours", nil, configs{"message.timestamp.after.max.ms": "10800000"}, in(2*time.Hour)),
		writing("two minutes ahead, after.max is 1 minute", kerr.InvalidTimestamp, configs{"message.timestamp.after.max.ms": "60000"}, in(2*time.Minute)),
		writing("the year 2100, after.max has no limit", nil, configs{"message.timestamp.after.max.ms": "9223372036854775807"}, one(&kgo.Record{Key: []byte("k"), Timestamp: time.Date(2100, 1, 1, 0, 0, 0, 0, time.UTC)})),
		writing("two hours ahead, LogAppendTime", nil, configs{"message.timestamp.type": "LogAppendTime"}, in(2*time.Hour)),
		writing("two years ago", nil, nil, in(-2*365*24*time.Hour)),
		writing("before 1970", nil, nil, one(&kgo.Record{Key: []byte("k"), Timestamp: time.UnixMilli(-1000)})),
		writing("the time -1, which means none", nil, nil, one(&kgo.Record{Key: []byte("k"), Timestamp: time.UnixMilli(-1)})),
		writing("two hours ago, before.max is 1 hour", kerr.InvalidTimestamp, configs{"message.timestamp.before.max.ms": "3600000"}, in(-2*time.Hour)),
		writing("50 minutes ago, before.max is 1 hour", nil, configs{"message.timestamp.before.max.ms": "3600000"}, in(-50*time.Minute)),
		writing("without a key to a compacted topic", kerr.InvalidRecord, compact, one(&kgo.Record{Value: []byte("v")})),
		writing("without a key to a compacted topic that deletes", kerr.InvalidRecord, configs{"cleanup.policy": "compact,delete"}, one(&kgo.Record{Value: []byte("v")})),
		writing("without a key to a compacted topic with LogAppendTime", kerr.InvalidRecord, configs{"cleanup.policy": "compact", "message.timestamp.type": "LogAppendTime"}, one(&kgo.Record{Value: []byte("v")})),
		writing("one of two without a key to a compacted topic", kerr.InvalidRecord, compact, one(&kgo.Record{Key: []byte("k")}, &kgo.Record{Value: []byte("v")})),
		writing("an empty key to a compacted topic", nil, compact, one(&kgo.Record{Key: []byte{}, Value: []byte("v")})),
		writing("without a key, two hours ahead, to a compacted topic", kerr.InvalidRecord, compact, one(&kgo.Record{Timestamp: time.Now().Add(2 * time.Hour)})),
		writing("one without a key, another two hours ahead, to a compacted topic", kerr.InvalidTimestamp, compact, func() []*kgo.Record { return append([]*kgo.Record{{}}, at(2*time.Hour)...) }),
		writing("without a key", nil, nil, one(&kgo.Record{Value: []byte("v")})),
		writing("5,000 bytes of 2,000", kerr.MessageTooLarge, configs{"max.message.bytes": "2000"}, func() []*kgo.Record { return sizedRecord(5000) }),
		writing("1,000 bytes of 2,000", nil, configs{"max.message.bytes": "2000"}, func() []*kgo.Record { return sizedRecord(1000) }),
		writing("5,000 bytes of 2,000, two hours ahead", kerr.MessageTooLarge, configs{"max.message.bytes": "2000"}, func() []*kgo.Record {
			r := sizedRecord(5000)
			r[0].Timestamp = time.Now().Add(2 * time.Hour)
			return r
		}),
		writing("more than a segment", kerr.RecordListTooLarge, configs{"max.message.bytes": "8000000", "segment.bytes": "1048576"}, func() []*kgo.Record { return sizedRecord(2_000_000) }, kgo.ProducerBatchMaxBytes(8_000_000)),

		creating(kerr.InvalidConfig, "no.such.setting", "1"),
		creating(kerr.InvalidConfig, "retention.ms", "forever"),
		creating(kerr.InvalidConfig, "retention.ms", "-2"),
		creating(nil, "retention.ms", "-1"),
		creating(nil, "retention.bytes", "-1"),
		creating(nil, "retention.bytes", "1000"),
		creating(kerr.InvalidConfig, "retention.bytes", "1e6"),
		creating(kerr.InvalidConfig, "cleanup.policy", "shred"),
		creating(nil, "cleanup.policy", "compact,delete"),
		creating(nil, "cleanup.policy", "delete, compact"),
		creating(kerr.InvalidConfig, "cleanup.policy", "compact,shred"),
		creating(kerr.InvalidConfig, "max.message.bytes", "-1"),
		creating(nil, "max.message.bytes", "0"),
		creating(kerr.InvalidConfig, "max.message.bytes", "5000000000"),
		creating(kerr.InvalidConfig, "message.timestamp.type", "EventTime"),
		creating(nil, "message.timestamp.type", "LogAppendTime"),
		creating(kerr.InvalidConfig, "message.timestamp.after.max.ms", "-1"),
		creating(nil, "message.timestamp.after.max.ms", "0"),
		creating(kerr.InvalidConfig, "message.timestamp.before.max.ms", "1h"),
		creating(kerr.InvalidConfig, "message.timestamp.difference.max.ms", "1000"),
		creating(kerr.InvalidConfig, "compression.type", "brotli"),
		creating(nil, "compression.type", "zstd"),
		creating(kerr.InvalidConfig, "compression.gzip.level", "0"),
		creating(nil, "compression.gzip.level", "9"),
		creating(kerr.InvalidConfig, "compression.zstd.level", "23"),
		creating(kerr.InvalidConfig, "compression.lz4.level", "18"),
		creating(kerr.InvalidConfig, "min.insync.replicas", "0"),
		creating(nil, "min.insync.replicas", "3"),
		creating(kerr.InvalidConfig, "min.cleanable.dirty.ratio", "1.5"),
		creating(nil, "min.cleanable.dirty.ratio", "0.1"),
		creating(kerr.InvalidConfig, "segment.bytes", "1000"),
		creating(nil, "segment.bytes", "1048576"),
		creating(kerr.InvalidConfig, "segment.ms", "0"),
		creating(kerr.InvalidConfig, "segment.jitter.ms", "-1"),
		creating(kerr.InvalidConfig, "segment.index.bytes", "3"),
		creating(kerr.InvalidConfig, "index.interval.bytes", "-1"),
		creating(kerr.InvalidConfig, "delete.retention.ms", "-1"),
		creating(kerr.InvalidConfig, "file.delete.delay.ms", "-1"),
		creating(kerr.InvalidConfig, "flush.messages", "0"),
		creating(kerr.InvalidConfig, "flush.ms", "-1"),
		creating(kerr.InvalidConfig, "max.compaction.lag.ms", "0"),
		creating(kerr.InvalidConfig, "min.compaction.lag.ms", "-1"),
		creating(kerr.InvalidConfig, "local.retention.ms", "-3"),
		creating(kerr.InvalidConfig, "preallocate", "yes"),
		creating(nil, "preallocate", "TRUE"),
		creating(kerr.InvalidConfig, "unclean.leader.election.enable", "1"),
		creating(kerr.InvalidConfig, "retention.ms", ""),
		{"create with a lag that ends before it begins", kerr.InvalidConfig, func(ctx context.Context, b *asked) error {
			_, err := b.create(ctx, configs{"min.compaction.lag.ms": "2000", "max.compaction.lag.ms": "1000"})
			return err
		}},
		{"create with a null setting", kerr.InvalidConfig, func(ctx context.Context, b *asked) error {
			_, err := b.admin.CreateTopic(ctx, 1, 1, map[string]*string{"retention.ms": nil}, "agree-"+uuid.NewString())
			return err
		}},
		{"validate a bad setting only", kerr.InvalidConfig, func(ctx context.Context, b *asked) error {
			answers, err := b.admin.ValidateCreateTopics(ctx, 1, 1, map[string]*string{"retention.ms": text("x")}, "agree-validate-"+id)
			if err == nil {
				err = answers["agree-validate-"+id].Err
			}
			return err
		}},

		naming(nil, "agree-"+id, 2, 1),
		naming(kerr.TopicAlreadyExists, "agree-"+id, 2, 1),
		naming(nil, "agree-default-"+id, -1, -1),
		naming(nil, "agree.dot."+id, 1, 1),
		naming(kerr.InvalidTopicException, "agree_dot."+id, 1, 1),
		naming(kerr.InvalidPartitions, "agree-p0-"+id, 0, 1),
		naming(kerr.InvalidPartitions, "agree-p-2-"+id, -2, 1),
		naming(kerr.InvalidReplicationFactor, "agree-r0-"+id, 1, 0),
		naming(kerr.InvalidReplicationFactor, "agree-r9-"+id, 1, 9),
		naming(kerr.InvalidTopicException, ".", 1, 1),
		naming(kerr.InvalidTopicException, "..", 1, 1),
		naming(kerr.InvalidTopicException, "agree/"+id, 1, 1),
		naming(kerr.InvalidTopicException, "agree ü"+id, 1, 1),
		naming(kerr.InvalidTopicException, string(bytes.Repeat([]byte("x"), 250)), 1, 1),

		altering("a setting", nil, kadm.SetConfig, "retention.ms", text("1000")),
		altering("an unknown setting", kerr.InvalidConfig, kadm.SetConfig, "no.such.setting", text("1")),
		altering("with a bad value", kerr.InvalidConfig, kadm.SetConfig, "retention.ms", text("x")),
		altering("with a negative value", kerr.InvalidConfig, kadm.SetConfig, "message.timestamp.after.max.ms", text("-5")),
		altering("append to a list", nil, kadm.AppendConfig, "cleanup.policy", text("compact")),
		altering("append to a number", kerr.InvalidConfig, kadm.AppendConfig, "retention.ms", text("1")),
		altering("append a bad value to a list", kerr.InvalidConfig, kadm.AppendConfig, "cleanup.policy", text("shred")),
		altering("delete a setting that is not set", nil, kadm.DeleteConfig, "retention.ms", nil),
		groupTimeout("below the heartbeat interval", kerr.InvalidConfig, "500"),
		groupTimeout("above the maximum", kerr.InvalidConfig, "90000"),
		groupTimeout("that is no number", kerr.InvalidConfig, "x"),
		groupTimeout("within the bounds", nil, "50000"),
		{"alter a topic that does not exist", kerr.UnknownTopicOrPartition, func(ctx context.Context, b *asked) error {
			answers, err := b.admin.AlterTopicConfigs(ctx, []kadm.AlterConfig{{Op: kadm.SetConfig, Name: "retention.ms", Value: text("1")}}, "agree-missing-"+id)
			if err == nil {
				err = answers[0].Err
			}
			return err
		}},

		growing(nil, 1, 3),
		growing(kerr.InvalidPartitions, 3, 3),
		growing(kerr.InvalidPartitions, 3, 2),
	}
}

// agree asks all questions.
func agree(t *testing.T, brokers []string) {
	cl, err := kgo.NewClient(kgo.SeedBrokers(brokers...))
	if err != nil {
		t.Fatal(err)
	}
	defer cl.Close()
	b := &asked{brokers: brokers, client: cl, admin: kadm.NewClient(cl)}
	for _, q := range questions() {
		ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
		err := q.ask(ctx, b)
		cancel()
		var code *kerr.Error
		if errors.As(err, &code); err != nil && code == nil || code != q.want {
			t.Errorf("%s: %v, want %v", q.name, err, q.want)
		}
	}
	topic, err := b.create(t.Context(), configs{"message.timestamp.type": "LogAppendTime"})
	if err != nil {
		t.Fatal(err)
	}
	checkAppendTime(t, b, topic)
	checkDefaults(t, b, topic)
}

// checkAppendTime checks that records get the broker's time.
func checkAppendTime(t *testing.T, b *asked, topic string) {
	t.Helper()
	cl, err := kgo.NewClient(kgo.SeedBrokers(b.brokers...), kgo.ConsumeTopics(topic), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()))
	if err != nil {
		t.Fatal(err)
	}
	defer cl.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	began := time.Now().Add(-time.Second)
	if err := cl.ProduceSync(ctx, &kgo.Record{Topic: topic, Value: []byte("v"), Timestamp: time.UnixMilli(0)}).FirstErr(); err != nil {
		t.Fatal(err)
	}
	fetches := cl.PollFetches(ctx)
	if err := fetches.Err(); err != nil {
		t.Fatal(err)
	}
	for _, r := range fetches.Records() {
		if r.Timestamp.Before(began) || r.Timestamp.After(time.Now().Add(time.Second)) {
			t.Errorf("with LogAppendTime, a record has the time %v", r.Timestamp)
		}
	}
}

// checkDefaults checks the settings that the programs read, and their defaults.
func checkDefaults(t *testing.T, b *asked, topic string) {
	t.Helper()
	described, err := b.admin.DescribeTopicConfigs(t.Context(), topic)
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]string{}
	for _, c := range described[0].Configs {
		got[c.Key] = c.MaybeValue() + " " + c.Source.String()
	}
	for key, want := range map[string]string{
		"message.timestamp.type":          "LogAppendTime DYNAMIC_TOPIC_CONFIG",
		"message.timestamp.after.max.ms":  "3600000 DEFAULT_CONFIG",
		"message.timestamp.before.max.ms": strconv.FormatInt(1<<63-1, 10) + " DEFAULT_CONFIG",
		"max.message.bytes":               "1048588 DEFAULT_CONFIG",
		"cleanup.policy":                  "delete DEFAULT_CONFIG",
		"retention.ms":                    "604800000 DEFAULT_CONFIG",
		"segment.bytes":                   "1073741824 DEFAULT_CONFIG",
		"compression.type":                "producer DEFAULT_CONFIG",
	} {
		if got[key] != want {
			t.Errorf("%s is %q, want %q", key, got[key], want)
		}
	}
	if n := len(got); n < 33 {
		t.Errorf("%d settings are described", n)
	}
}

func TestSandboxBrokerAnswersAsKafkaDoes(t *testing.T) {
	box, err := sandbox.New(sandbox.Config{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = box.Close() })
	agree(t, box.Brokers())
}

func TestKafkaAnswersAsTheSandboxBrokerDoes(t *testing.T) {
	onKafka(t, func(t *testing.T, b *kafkatest.Broker, _ []string) { agree(t, b.Brokers()) })
}
