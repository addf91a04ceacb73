package kafka

import (
	"context"
	"fmt"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"millrace/pipeline"
)

// Names and levels of the cluster features that checkBrokers checks. A cluster
// finalizes a level when all its brokers support it.
const (
	featureTxn      = "transaction.version"
	featureTxnLevel = 2 // the producer epoch rises with each transaction (KIP-890)

	featureMetadata = "metadata.version"
	featureLevel4_3 = 30 // 4.3-IV0 of Apache Kafka's MetadataVersion
)

// checkBrokers checks, once per loop, the features of the brokers. It logs a warning
// for transactions of version 1, in which a delayed request of an aborted transaction
// can end a later one.
func (l *Loop) checkBrokers(ctx context.Context, cl *kgo.Client) error {
	l.brokers.Lock()
	defer l.brokers.Unlock()
	if l.checked {
		return nil
	}
	versions, err := kadm.NewClient(cl).ApiVersions(ctx)
	if err != nil {
		return fmt.Errorf("reading the API versions of the brokers: %w", err)
	}
	for _, v := range versions.Sorted() {
		if v.Err != nil {
			continue // the answer of another broker is enough
		}
		l.checked = true
		levels := map[string]int16{}
		for _, f := range v.Raw().FinalizedFeatures {
			levels[f.Name] = f.MaxVersionLevel
		}
		if l.cfg.Protocol == ConsumerProtocol {
			// Without this check the client would silently fall back to the classic protocol.
			have, ok := v.KeyMaxVersion(int16(kmsg.ConsumerGroupHeartbeat))
			if !ok || have < 1 || levels[featureMetadata] < featureLevel4_3 {
				return pipeline.Fatal("group.protocol=%s needs brokers of version 4.3 or newer and a finalized %s of %d or more, but broker %d reports %d: use %s until the upgrade is finished",
					ConsumerProtocol, featureMetadata, featureLevel4_3, v.NodeID, levels[featureMetadata], ClassicProtocol)
			}
		}
		if l.cfg.Guarantee == ExactlyOnce && levels[featureTxn] < featureTxnLevel {
			l.cfg.Logger.Warn("the cluster uses an old transaction version, in which a delayed request can, rarely, end a later transaction: with brokers of 4.0 or newer, run kafka-features.sh upgrade --feature transaction.version=2",
				"group", l.cfg.Group, "broker", v.NodeID, featureTxn, levels[featureTxn])
		}
		return nil
	}
	return nil
}
