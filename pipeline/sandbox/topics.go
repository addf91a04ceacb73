package sandbox

import (
	"math"
	"slices"
	"strconv"
	"strings"

	"github.com/twmb/franz-go/pkg/kmsg"
)

// A setting is a configuration entry of a topic, by the rules of Apache Kafka 4.4.
type setting struct {
	kind     kmsg.ConfigType
	standard string // the default
	valid    func(value string) bool
}

// topicSettings returns the configuration entries of topics, by name. The broker library accepts any name
// and value, and knows the defaults of a few.
func topicSettings() map[string]setting {
	const noLimit = "9223372036854775807"
	anything := func(string) bool { return true }
	throttle := setting{kmsg.ConfigTypeList, "", anything}
	return map[string]setting{
		"cleanup.policy":                          {kmsg.ConfigTypeList, "delete", each("compact", "delete")},
		"compression.gzip.level":                  {kmsg.ConfigTypeInt, "-1", func(v string) bool { return v == "-1" || between(1, 9)(v) }},
		"compression.lz4.level":                   {kmsg.ConfigTypeInt, "9", between(1, 17)},
		"compression.type":                        {kmsg.ConfigTypeString, "producer", oneOf("uncompressed", "zstd", "lz4", "snappy", "gzip", "producer")},
		"compression.zstd.level":                  {kmsg.ConfigTypeInt, "3", between(-131072, 22)},
		"delete.retention.ms":                     {kmsg.ConfigTypeLong, "86400000", long(0)},
		"file.delete.delay.ms":                    {kmsg.ConfigTypeLong, "60000", long(0)},
		"flush.messages":                          {kmsg.ConfigTypeLong, noLimit, long(1)},
		"flush.ms":                                {kmsg.ConfigTypeLong, noLimit, long(0)},
		"follower.replication.throttled.replicas": throttle,
		"index.interval.bytes":                    {kmsg.ConfigTypeInt, "4096", integer(0)},
		"leader.replication.throttled.replicas":   throttle,
		"local.retention.bytes":                   {kmsg.ConfigTypeLong, "-2", long(-2)},
		"local.retention.ms":                      {kmsg.ConfigTypeLong, "-2", long(-2)},
		"max.compaction.lag.ms":                   {kmsg.ConfigTypeLong, noLimit, long(1)},
		"max.message.bytes":                       {kmsg.ConfigTypeInt, "1048588", integer(0)},
		"message.timestamp.after.max.ms":          {kmsg.ConfigTypeLong, "3600000", long(0)},
		"message.timestamp.before.max.ms":         {kmsg.ConfigTypeLong, noLimit, long(0)},
		"message.timestamp.type":                  {kmsg.ConfigTypeString, "CreateTime", oneOf("CreateTime", "LogAppendTime")},
		"min.cleanable.dirty.ratio":               {kmsg.ConfigTypeDouble, "0.5", share},
		"min.compaction.lag.ms":                   {kmsg.ConfigTypeLong, "0", long(0)},
		"min.insync.replicas":                     {kmsg.ConfigTypeInt, "1", integer(1)},
		"preallocate":                             {kmsg.ConfigTypeBoolean, "false", boolean},
		"remote.log.copy.disable":                 {kmsg.ConfigTypeBoolean, "false", boolean},
		"remote.log.delete.on.disable":            {kmsg.ConfigTypeBoolean, "false", boolean},
		"remote.storage.enable":                   {kmsg.ConfigTypeBoolean, "false", boolean},
		"retention.bytes":                         {kmsg.ConfigTypeLong, "-1", long(math.MinInt64)},
		"retention.ms":                            {kmsg.ConfigTypeLong, "604800000", long(-1)},
		"segment.bytes":                           {kmsg.ConfigTypeInt, "1073741824", integer(1 << 20)},
		"segment.index.bytes":                     {kmsg.ConfigTypeInt, "10485760", integer(4)},
		"segment.jitter.ms":                       {kmsg.ConfigTypeLong, "0", long(0)},
		"segment.ms":                              {kmsg.ConfigTypeLong, "604800000", long(1)},
		"unclean.leader.election.enable":          {kmsg.ConfigTypeBoolean, "false", boolean},
	}
}

func long(least int64) func(string) bool {
	return func(v string) bool {
		n, err := strconv.ParseInt(strings.TrimSpace(v), 10, 64)
		return err == nil && n >= least
	}
}

func integer(least int64) func(string) bool { return between(least, math.MaxInt32) }

func between(least, most int64) func(string) bool {
	return func(v string) bool {
		n, err := strconv.ParseInt(strings.TrimSpace(v), 10, 32)
		return err == nil && n >= least && n <= most
	}
}

func share(v string) bool {
	f, err := strconv.ParseFloat(strings.TrimSpace(v), 64)
	return err == nil && f >= 0 && f <= 1
}

func boolean(v string) bool {
	v = strings.ToLower(strings.TrimSpace(v))
	return v == "true" || v == "false"
}

func oneOf(values ...string) func(string) bool {
	return func(v string) bool { return slices.Contains(values, strings.TrimSpace(v)) }
}

// each returns a check of a list separated by commas.
func each(values ...string) func(string) bool {
	return func(v string) bool {
		for _, part := range strings.Split(v, ",") {
			if !slices.Contains(values, strings.TrimSpace(part)) {
				return false
			}
		}
		return true
	}
}

// validTopicName follows Kafka's rules for the names of topics.
func validTopicName(name string) bool {
	if name == "" || name == "." || name == ".." || len(name) > 249 {
		return false
	}
	return !strings.ContainsFunc(name, func(r rune) bool {
		return !strings.ContainsRune("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-", r)
	})
}
