// A @grpc/grpc-js client of a running server: streams, cancels, passes a deadline, asks health and reflection. Usage: client.js ADDRESS PROTO_FOLDER
const grpc = require('@grpc/grpc-js');
const loader = require('@grpc/proto-loader');

const [address, protos] = process.argv.slice(2);
const load = (file) => grpc.loadPackageDefinition(loader.loadSync(file, { includeDirs: [protos], keepCase: true, defaults: true, enums: String, longs: String }));
const creds = grpc.credentials.createInsecure();
const muster = new (load('muster/v1/muster.proto').muster.v1.Muster)(address, creds);
const health = new (load('grpc/health/v1/health.proto').grpc.health.v1.Health)(address, creds);
const reflection = new (load('grpc/reflection/v1alpha/reflection.proto').grpc.reflection.v1alpha.ServerReflection)(address, creds);

const stream = (request, options = {}, onReply = () => {}) =>
  new Promise((resolve) => {
    let text = '';
    const call = muster.Generate(request, options);
    call.on('data', (r) => { text += r.text; onReply(call, r); });
    call.on('error', (e) => resolve({ text, code: e.code, details: e.details }));
    call.on('end', () => resolve({ text, code: grpc.status.OK }));
  });

const expect = (what, ok) => {
  if (!ok) {
    console.error('FAILED: ' + what);
    process.exit(1);
  }
};

(async () => {
  const done = await stream({ text: 'ROMEO:\n', max_tokens: 30, ignore_end: true });
  expect('a stream ends well', done.code === grpc.status.OK && done.text.length > 0);

  const cancelled = await stream({ text: 'O', max_tokens: 400, ignore_end: true }, {}, (call) => call.cancel());
  expect('a cancelled stream says so', cancelled.code === grpc.status.CANCELLED);

  let late;
  for (let i = 0; i < 100 && (!late || late.code === grpc.status.OK); i++)
    late = await stream({ text: 'O', max_tokens: 500, ignore_end: true }, { deadline: Date.now() + 50 });
  expect('a deadline passes', late.code === grpc.status.DEADLINE_EXCEEDED);

  const status = await new Promise((resolve, reject) => health.Check({ service: 'muster.v1.Muster' }, (e, r) => (e ? reject(e) : resolve(r))));
  expect('health is SERVING', status.status === 'SERVING');

  const services = await new Promise((resolve, reject) => {
    const call = reflection.ServerReflectionInfo();
    call.on('data', (r) => { resolve(r.list_services_response.service.map((s) => s.name)); call.end(); });
    call.on('error', reject);
    call.write({ list_services: '' });
  });
  expect('reflection lists the service', services.includes('muster.v1.Muster'));

  console.log(`all fine, ${done.text.length} characters`);
  process.exit(0);
})().catch((e) => {
  console.error(e);
  process.exit(1);
});
