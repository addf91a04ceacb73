package producer

import (
	"fmt"

	"github.com/spf13/cobra"

	"millrace/pipeline/cli"
	"millrace/pipeline/keyring"
	"millrace/pipeline/seal"
)

func newKEKCommand(e *cli.Env) *cobra.Command {
	var uri, id string
	cmd := &cobra.Command{
		Use:   "new-kek",
		Short: "Print a line of a key file, with a new key that a key management service has wrapped",
		Long: `Makes a new key-encryption key, lets a key management service (KMS) wrap it, and prints
the line for the file of --kek-file. The line has no secret: only the KMS can unwrap
the key. It does so once for each start of a program.

The URI names the key of the KMS:

  aws-kms://arn:aws:kms:REGION:ACCOUNT:key/ID
  gcp-kms://projects/PROJECT/locations/LOCATION/keyRings/RING/cryptoKeys/NAME
  hcvault://HOST:PORT/transit/keys/NAME

The environment has the credentials, as for the other tools of the service:
AWS_..., GOOGLE_APPLICATION_CREDENTIALS, VAULT_TOKEN. The caller needs the rights to
encrypt and to decrypt: the command unwraps the key again, and checks that the KMS
refuses to do so under another id.

Exit code 0 if the line was printed; 1 if the KMS refused, or did not answer within
two minutes; 2 if the command line is wrong.`,
		Example: `  producer new-kek --id 2026-12 --kms aws-kms://arn:aws:kms:eu-north-1:111122223333:key/0d5c0e9c-2a04-4a3c-b7a9-9f6ad7b8c9d0 >> kek
  VAULT_TOKEN=... producer new-kek --id 2026-12 --kms hcvault://vault.example:8200/transit/keys/millrace >> kek`,
	}
	flags := cmd.Flags()
	logs := e.LogFlags(flags)
	flags.StringVar(&id, "id", "", "`id` of the new key-encryption key, not used before: letters, digits, dots, dashes and underscores")
	flags.StringVar(&uri, "kms", "", "`URI` of the key of the KMS")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		log, err := logs.Logger()
		if err != nil {
			return err
		}
		if err := seal.CheckKEKID(id); err != nil {
			return cli.Usagef("--id: %w", err)
		}
		if err := seal.CheckURI(uri); err != nil {
			return cli.Usagef("--kms: %w", err)
		}
		line, err := keyring.NewLine(cmd.Context(), e.KMS, log, uri, id)
		if err != nil {
			return fmt.Errorf("%s: %w", uri, err)
		}
		_, err = fmt.Fprint(e.Stdout, line)
		return err
	}
	return cmd
}
