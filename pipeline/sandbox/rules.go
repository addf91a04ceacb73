package sandbox

import (
	"encoding/binary"
	"hash/crc32"
	"maps"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// rules make the broker refuse what Apache Kafka refuses and the broker library accepts:
// records that their topic does not take, unknown or wrong settings of topics, and bad
// names. A table of requests in package e2e compares the answers with Apache Kafka's.
//
// The broker calls the methods one at a time, before it handles a request.
type rules struct {
	broker   *kfake.Cluster
	settings map[string]setting // by name
	now      func() time.Time
}

// applyRules adds the rules to a broker.
func applyRules(broker *kfake.Cluster) {
	r := &rules{broker: broker, settings: topicSettings(), now: time.Now}
	broker.ControlKey(int16(kmsg.Produce), func(req kmsg.Request) (kmsg.Response, error, bool) {
		r.produce(req.(*kmsg.ProduceRequest))
		return nil, nil, false
	})
	broker.ControlKey(int16(kmsg.CreateTopics), func(req kmsg.Request) (kmsg.Response, error, bool) {
		r.createTopics(req.(*kmsg.CreateTopicsRequest))
		return nil, nil, false
	})
	broker.ControlKey(int16(kmsg.IncrementalAlterConfigs), func(req kmsg.Request) (kmsg.Response, error, bool) {
		r.alterConfigs(req.(*kmsg.IncrementalAlterConfigsRequest))
		return nil, nil, false
	})
	broker.ControlKey(int16(kmsg.CreatePartitions), func(req kmsg.Request) (kmsg.Response, error, bool) {
		r.createPartitions(req.(*kmsg.CreatePartitionsRequest))
		return nil, nil, false
	})
	broker.ControlKey(int16(kmsg.DescribeConfigs), func(req kmsg.Request) (kmsg.Response, error, bool) {
		broker.KeepControl()
		resp, ok := r.describeConfigs(req.(*kmsg.DescribeConfigsRequest))
		return resp, nil, ok
	})
}

// refuse answers one entity of a request with an error: the broker handles the request
// when the rule has returned.
func (r *rules) refuse(req kmsg.Request, err *kerr.Error, f kfake.Fault) {
	f.Keys, f.Err, f.Count = []kmsg.Key{kmsg.Key(req.Key())}, err, 1
	f.When = func(current kmsg.Request) bool { return current == req }
	r.broker.Fault(f)
}

// config returns the value of a setting of a topic.
func (r *rules) config(info *kfake.TopicInfo, name string) string {
	if v := info.Configs[name]; v != nil {
		return *v
	}
	return r.settings[name].standard
}

// produce checks the records of each partition, and sets their time on topics with
// LogAppendTime.
func (r *rules) produce(req *kmsg.ProduceRequest) {
	for i := range req.Topics {
		t := &req.Topics[i]
		info := r.broker.TopicInfo(t.Topic)
		if t.Topic == "" {
			info = r.broker.TopicIDInfo(t.TopicID)
		}
		if info == nil {
			continue
		}
		for j := range t.Partitions {
			p := &t.Partitions[j]
			var b kmsg.RecordBatch
			if b.ReadFrom(p.Records) != nil || b.Magic != 2 {
				continue // the broker refuses it
			}
			if err := r.checkBatch(info, &b, len(p.Records)); err != nil {
				r.refuse(req, err, kfake.Fault{Topic: info.Topic, Partitions: []int32{p.Partition}})
				continue
			}
			if r.config(info, "message.timestamp.type") == "LogAppendTime" {
				p.Records = stamp(&b, r.now())
			}
		}
	}
}

// checkBatch returns the error with which Kafka answers a batch of size bytes, nil if it
// takes the batch.
func (r *rules) checkBatch(info *kfake.TopicInfo, b *kmsg.RecordBatch, size int) *kerr.Error {
	number := func(name string) int64 {
		n, _ := strconv.ParseInt(r.config(info, name), 10, 64) // valid since the topic was created
		return n
	}
	if int64(size) > number("max.message.bytes") {
		return kerr.MessageTooLarge
	}
	now := r.now().UnixMilli()
	before, after := number("message.timestamp.before.max.ms"), number("message.timestamp.after.max.ms")
	keyed := strings.Contains(r.config(info, "cleanup.policy"), "compact")
	stamped := r.config(info, "message.timestamp.type") == "LogAppendTime"
	if !keyed && before == math.MaxInt64 && (stamped || b.MaxTimestamp-now <= after) && int64(size) <= number("segment.bytes") {
		return nil // without a look at each record
	}
	var badTime, noKey bool
	eachRecord(b, func(rec *kmsg.Record) {
		at := b.FirstTimestamp + rec.TimestampDelta64
		switch {
		case keyed && rec.Key == nil:
			noKey = true
		case !stamped && at != -1 && (now-at > before || at-now > after):
			badTime = true
		}
	})
	switch {
	case badTime:
		return kerr.InvalidTimestamp
	case noKey:
		return kerr.InvalidRecord
	case int64(size) > number("segment.bytes"):
		return kerr.RecordListTooLarge
	}
	return nil
}

// compression is the part of a batch's attributes that names the codec.
const compression = 7

// eachRecord calls f with each record of a batch.
func eachRecord(b *kmsg.RecordBatch, f func(*kmsg.Record)) {
	raw, err := kgo.DefaultDecompressor().Decompress(b.Records, kgo.CompressionCodecType(b.Attributes&compression))
	if err != nil {
		return // a batch that no client can read; the broker takes it
	}
	for range b.NumRecords {
		length, n := binary.Varint(raw)
		if n <= 0 || length < 0 || int64(len(raw)-n) < length {
			return
		}
		var rec kmsg.Record
		if rec.ReadFrom(raw[:n+int(length)]) != nil {
			return
		}
		f(&rec)
		raw = raw[n+int(length):]
	}
}

// stamp returns a batch with the same records, all of which have the time of the broker.
// Kafka marks such a batch instead; the broker library cannot read what it makes of the
// mark.
func stamp(b *kmsg.RecordBatch, now time.Time) []byte {
	const head, attributes, crc = 12, 21, 17 // offsets in the encoding
	var records []byte
	eachRecord(b, func(rec *kmsg.Record) {
		rec.TimestampDelta64, rec.Length = 0, 0
		body := rec.AppendTo(nil)[1:] // without the length
		records = append(binary.AppendVarint(records, int64(len(body))), body...)
	})
	out := *b
	out.Records, out.Attributes = records, b.Attributes&^compression
	out.FirstTimestamp, out.MaxTimestamp = now.UnixMilli(), now.UnixMilli()
	enc := out.AppendTo(nil)
	binary.BigEndian.PutUint32(enc[head-4:], uint32(len(enc)-head))
	binary.BigEndian.PutUint32(enc[crc:], crc32.Checksum(enc[attributes:], crc32.MakeTable(crc32.Castagnoli)))
	return enc
}

// createTopics checks the names and settings of topics.
func (r *rules) createTopics(req *kmsg.CreateTopicsRequest) {
	for _, t := range req.Topics {
		fault := kfake.Fault{Topic: t.Topic}
		configs := map[string]string{}
		ok := true
		for _, c := range t.Configs {
			if ok = ok && c.Value != nil; ok {
				configs[c.Name] = *c.Value
			}
		}
		switch {
		case r.broker.TopicInfo(t.Topic) != nil: // the broker refuses it
		case !validTopicName(t.Topic):
			r.refuse(req, kerr.InvalidTopicException, fault)
		case t.NumPartitions < -1:
			r.refuse(req, kerr.InvalidPartitions, fault)
		case t.NumPartitions != 0 && len(t.ReplicaAssignment) == 0 && (t.ReplicationFactor == 0 || t.ReplicationFactor < -1):
			r.refuse(req, kerr.InvalidReplicationFactor, fault)
		case !ok || !r.valid(configs):
			r.refuse(req, kerr.InvalidConfig, fault)
		}
	}
}

// createPartitions checks that topics grow.
func (r *rules) createPartitions(req *kmsg.CreatePartitionsRequest) {
	for _, t := range req.Topics {
		if int(t.Count) == len(r.broker.PartitionInfos(t.Topic)) {
			r.refuse(req, kerr.InvalidPartitions, kfake.Fault{Topic: t.Topic})
		}
	}
}

// groupBounds are the least and the greatest value of the settings of a group, in ms:
// Kafka's defaults of group.consumer.{min,max}.session.timeout.ms and
// group.consumer.{min,max}.heartbeat.interval.ms.
var groupBounds = map[string][2]int64{
	"consumer.session.timeout.ms":    {45_000, 60_000},
	"consumer.heartbeat.interval.ms": {5_000, 15_000},
}

// checkGroup makes the broker refuse settings that a group cannot have: it checks names and
// operations, and has no faults for groups.
func checkGroup(set []kmsg.IncrementalAlterConfigsRequestResourceConfig) {
	for i := range set {
		c := &set[i]
		bounds, ok := groupBounds[c.Name]
		if !ok || c.Op != kmsg.IncrementalAlterConfigOpSet {
			continue
		}
		n := int64(0)
		if c.Value != nil {
			n, _ = strconv.ParseInt(strings.TrimSpace(*c.Value), 10, 32) // 0 is refused
		}
		if n < bounds[0] || n > bounds[1] {
			c.Op = kmsg.IncrementalAlterConfigOpAppend
		}
	}
}

// alterConfigs checks the new settings of topics and groups.
func (r *rules) alterConfigs(req *kmsg.IncrementalAlterConfigsRequest) {
	for _, res := range req.Resources {
		if res.ResourceType == kmsg.ConfigResourceTypeGroupConfig {
			checkGroup(res.Configs)
		}
		info := r.broker.TopicInfo(res.ResourceName)
		if res.ResourceType != kmsg.ConfigResourceTypeTopic || info == nil {
			continue
		}
		configs := map[string]string{}
		for name, v := range info.Configs {
			if v != nil {
				configs[name] = *v
			}
		}
		ok := true
		for _, c := range res.Configs {
			set, known := r.settings[c.Name]
			ok = ok && known
			switch c.Op {
			case kmsg.IncrementalAlterConfigOpSet:
				if ok = ok && c.Value != nil; ok {
					configs[c.Name] = *c.Value
				}
			case kmsg.IncrementalAlterConfigOpAppend, kmsg.IncrementalAlterConfigOpSubtract:
				ok = ok && c.Value != nil && set.kind == kmsg.ConfigTypeList && set.valid(*c.Value)
			}
		}
		if !ok || !r.valid(configs) {
			r.refuse(req, kerr.InvalidConfig, kfake.Fault{Resource: res.ResourceName})
		}
	}
}

// valid reports whether a topic can have the settings.
func (r *rules) valid(configs map[string]string) bool {
	for name, value := range configs {
		if s, known := r.settings[name]; !known || !s.valid(value) {
			return false
		}
	}
	number := func(name string) int64 {
		value, ok := configs[name]
		if !ok {
			value = r.settings[name].standard
		}
		n, _ := strconv.ParseInt(strings.TrimSpace(value), 10, 64) // valid, see above
		return n
	}
	return number("max.compaction.lag.ms") >= number("min.compaction.lag.ms")
}

// describeConfigs answers with all settings of the topics. ok is false if the request is
// about other resources, too.
func (r *rules) describeConfigs(req *kmsg.DescribeConfigsRequest) (_ kmsg.Response, ok bool) {
	resp := req.ResponseKind().(*kmsg.DescribeConfigsResponse)
	for _, want := range req.Resources {
		if want.ResourceType != kmsg.ConfigResourceTypeTopic {
			return nil, false
		}
		out := kmsg.NewDescribeConfigsResponseResource()
		out.ResourceType, out.ResourceName = want.ResourceType, want.ResourceName
		info := r.broker.TopicInfo(want.ResourceName)
		if info == nil {
			out.ErrorCode = kerr.UnknownTopicOrPartition.Code
		} else {
			out.Configs = r.describe(info, want.ConfigNames)
		}
		resp.Resources = append(resp.Resources, out)
	}
	return resp, true
}

// describe returns the settings of a topic; names are those that the client asks for, nil
// for all.
func (r *rules) describe(info *kfake.TopicInfo, names []string) (out []kmsg.DescribeConfigsResponseResourceConfig) {
	for _, name := range slices.Sorted(maps.Keys(r.settings)) {
		if names != nil && !slices.Contains(names, name) {
			continue
		}
		value := r.config(info, name)
		c := kmsg.NewDescribeConfigsResponseResourceConfig()
		c.Name, c.Value, c.ConfigType = name, &value, r.settings[name].kind
		c.Source, c.IsDefault = kmsg.ConfigSourceDefaultConfig, true
		if info.Configs[name] != nil {
			c.Source, c.IsDefault = kmsg.ConfigSourceDynamicTopicConfig, false
		}
		out = append(out, c)
	}
	return out
}
