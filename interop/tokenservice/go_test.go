package tokenservice

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	gooidc "github.com/coreos/go-oidc/v3/oidc"
	"github.com/zitadel/oidc/v3/pkg/client"
	"github.com/zitadel/oidc/v3/pkg/client/rs"
	"github.com/zitadel/oidc/v3/pkg/client/tokenexchange"
	httphelper "github.com/zitadel/oidc/v3/pkg/http"
	"github.com/zitadel/oidc/v3/pkg/oidc"
	"golang.org/x/oauth2"
	"golang.org/x/oauth2/clientcredentials"
)

// TestGoClients: x/oauth2 gets tokens, go-oidc verifies them with the published
// keys, and zitadel/oidc exchanges, introspects and revokes them.
func TestGoClients(t *testing.T) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	pub, err := key.PublicKey.Bytes()
	if err != nil {
		t.Fatal(err)
	}
	enc := base64.RawURLEncoding.EncodeToString
	g := newGate(t, fmt.Sprintf(`{"kty":"EC","crv":"P-256","use":"sig","alg":"ES256","kid":"go","x":%q,"y":%q}`, enc(pub[1:33]), enc(pub[33:])))
	ctx := context.WithValue(t.Context(), oauth2.HTTPClient, g.client)

	fetch := func(id string, style oauth2.AuthStyle) (*oauth2.Token, error) {
		c := clientcredentials.Config{
			ClientID: id, ClientSecret: secret, TokenURL: g.issuer + "/oauth2/token", Scopes: []string{"read"}, AuthStyle: style,
			EndpointParams: url.Values{"audience": {audience}},
		}
		return c.Token(ctx)
	}
	one, err := fetch("basic", oauth2.AuthStyleInHeader)
	if err != nil || g.use(one.AccessToken) != 200 {
		t.Fatal(err)
	}
	if _, err := fetch("post", oauth2.AuthStyleInParams); err != nil {
		t.Fatal(err)
	}
	if _, err := fetch("post", oauth2.AuthStyleInHeader); err == nil || !strings.Contains(err.Error(), "invalid_client") {
		t.Errorf("another method: %v", err)
	}

	keys := gooidc.NewRemoteKeySet(gooidc.ClientContext(ctx, g.client), g.issuer+"/oauth2/jwks")
	verify := func(token string) error {
		_, err := keys.VerifySignature(ctx, token)
		return err
	}
	if err := verify(one.AccessToken); err != nil {
		t.Error(err)
	}
	g.Run("token", "rotate-keys", "--at-once")
	two, err := fetch("basic", oauth2.AuthStyleInHeader)
	if err != nil {
		t.Fatal(err)
	}
	for name, token := range map[string]string{"before": one.AccessToken, "after": two.AccessToken} {
		if err := verify(token); err != nil {
			t.Errorf("%s the rotation: %v", name, err)
		}
	}

	exchanger, err := tokenexchange.NewTokenExchangerClientCredentials(ctx, g.issuer, "basic", secret,
		tokenexchange.WithHTTPClient(g.client), tokenexchange.WithStaticTokenEndpoint(g.issuer, g.issuer+"/oauth2/token"))
	if err != nil {
		t.Fatal(err)
	}
	got, err := tokenexchange.ExchangeToken(ctx, exchanger, two.AccessToken, oidc.AccessTokenType, "", "", nil, []string{internal}, []string{"read", "offline_access"}, oidc.AccessTokenType)
	if err != nil || got.RefreshToken == "" || got.TokenType != "Bearer" {
		t.Fatalf("%+v %v", got, err)
	}
	if err := verify(got.AccessToken); err != nil {
		t.Error(err)
	}
	refresh := func(token string) (*oauth2.Token, error) {
		c := oauth2.Config{ClientID: "basic", ClientSecret: secret, Endpoint: oauth2.Endpoint{TokenURL: g.issuer + "/oauth2/token", AuthStyle: oauth2.AuthStyleInHeader}}
		return c.TokenSource(ctx, &oauth2.Token{RefreshToken: token}).Token()
	}
	next, err := refresh(got.RefreshToken)
	if err != nil || next.RefreshToken == got.RefreshToken || next.RefreshToken == "" {
		t.Fatalf("%+v %v", next, err)
	}

	server, err := rs.NewResourceServerClientCredentials(ctx, g.issuer, "basic", secret,
		rs.WithClient(g.client), rs.WithStaticEndpoints(g.issuer+"/oauth2/token", g.issuer+"/oauth2/introspect"))
	if err != nil {
		t.Fatal(err)
	}
	active := func(token string) bool {
		t.Helper()
		in, err := rs.Introspect[*oidc.IntrospectionResponse](ctx, server, token)
		if err != nil {
			t.Fatal(err)
		}
		return in.Active
	}
	if !active(two.AccessToken) {
		t.Error("a good token is not active")
	}
	revoke := func(req client.RevokeRequest, auth any) error {
		return client.CallRevokeEndpoint(ctx, req, auth, revoker{g})
	}
	if err := revoke(client.RevokeRequest{Token: two.AccessToken, ClientID: "basic", ClientSecret: secret}, nil); err == nil || !strings.Contains(err.Error(), "invalid_client") {
		t.Errorf("the secret in the form, which is not the client's method: %v", err)
	}
	if err := revoke(client.RevokeRequest{Token: two.AccessToken, ClientID: "post", ClientSecret: secret}, nil); err == nil || !strings.Contains(err.Error(), "unauthorized_client") {
		t.Errorf("another client's token: %v", err)
	}
	if err := revoke(client.RevokeRequest{Token: two.AccessToken, ClientID: "basic"}, httphelper.AuthorizeBasic("basic", secret)); err != nil {
		t.Error(err)
	}
	if active(two.AccessToken) || g.use(two.AccessToken) != 401 {
		t.Error("a revoked token is active")
	}

	// private_key_jwt: good once.
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	signer, err := client.NewSignerFromPrivateKeyByte(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), "go")
	if err != nil {
		t.Fatal(err)
	}
	assertion, err := client.SignedJWTProfileAssertion("signer", []string{g.issuer}, 5*time.Minute, signer)
	if err != nil {
		t.Fatal(err)
	}
	signed := client.RevokeRequest{Token: "none of ours", ClientID: "signer", ClientAssertion: assertion, ClientAssertionType: oidc.ClientAssertionTypeJWTAssertion}
	if err := revoke(signed, nil); err != nil {
		t.Error(err)
	}
	if err := revoke(signed, nil); err == nil || !strings.Contains(err.Error(), "invalid_client") {
		t.Errorf("an assertion that was used before: %v", err)
	}
}

// revoker tells zitadel/oidc where to revoke.
type revoker struct{ g *gate }

func (r revoker) GetRevokeEndpoint() string { return r.g.issuer + "/oauth2/revoke" }
func (r revoker) HttpClient() *http.Client  { return r.g.client }
