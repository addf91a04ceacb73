package kafka

import (
	"context"
	"fmt"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"millrace/pipeline"
)

// The features that are looked at, by the names and levels that brokers tell: a
// level is set when all brokers of the cluster can do it.
const (
	featureTxn      = "transaction.version"
	featureTxnLevel = 2 // the epoch rises with each transaction (KIP-890)

	featureMetadata = "metadata.version"
	featureLevel4_3 = 30 // 4.3-IV0 of Apache Kafka's MetadataVersion
)

// checkBrokers looks, once for a loop, at what the brokers can do. Brokers whose
// transactions are of the first version are warned of: a late request of a
// transaction that was given up can end the one after it.
func (l *Loop) checkBrokers(ctx context.Context, cl *kgo.Client) error {
	l.brokers.Lock()
	defer l.brokers.Unlock()
	if l.checked {
		return nil
	}
	versions, err := kadm.NewClient(cl).ApiVersions(ctx)
	if err != nil {
		return fmt.Errorf("asking brokers for their versions: %w", err)
	}
	for _, v := range versions.Sorted() {
		if v.Err != nil {
			continue // others speak for it
		}
		l.checked = true
		levels := map[string]int16{}
		for _, f := range v.Raw().FinalizedFeatures {
			levels[f.Name] = f.MaxVersionLevel
		}
		if l.cfg.Protocol == ConsumerProtocol {
			// The client would fall back to the classic protocol, and not say so.
			have, ok := v.KeyMaxVersion(int16(kmsg.ConsumerGroupHeartbeat))
			if !ok || have < 1 || levels[featureMetadata] < featureLevel4_3 {
				return pipeline.Fatal("group.protocol=%s needs brokers of version 4.3 or newer, and a cluster that was told so (%s %d or more; broker %d says %d): leave it at %s until the upgrade is finished",
					ConsumerProtocol, featureMetadata, featureLevel4_3, v.NodeID, levels[featureMetadata], ClassicProtocol)
			}
		}
		if l.cfg.Guarantee == ExactlyOnce && levels[featureTxn] < featureTxnLevel {
			l.cfg.Logger.Warn("the cluster's transactions are of an old version: in rare cases a delayed request can end a later transaction. With brokers of 4.0 or newer, set the feature: kafka-features.sh upgrade --feature transaction.version=2",
				"group", l.cfg.Group, "broker", v.NodeID, featureTxn, levels[featureTxn])
		}
		return nil
	}
	return nil
}
